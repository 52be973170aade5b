"""AutoAssist: the callback, the data module, and everything between them.

``callback.py`` is what the Trainer calls; ``parts.py`` makes the parts that it works with, ``fit_connection.py``
connects them with a fit, ``run_answers.py`` answers what is asked of a run. ``options.py`` says what is in force in a
run, ``observed_steps.py`` looks at the steps, ``trained_batches.py`` ends a batch, ``selector.py`` decides and
learns, over a memory of instances (``instance_memory.py``): ``stored_instances.py`` of data with indices,
``streamed_instances.py`` of streams. ``data`` is the data module and its loaders; ``sampling`` makes batches of the
candidates that are kept; ``memory`` holds what is known of each instance; ``assistants`` predict scores from it, and
``policies`` turn these into keep probabilities. ``checks`` look at the run's settings, ``reporting`` says what was
done, ``checkpoint.py`` what a checkpoint holds, ``diagnosis.py`` why filtering is on or off.
"""
