"""What ``autoassist demo`` does: a small network, trained in full, on a shortened schedule, and filtered by policies.

``project.py`` and ``rare_events.py`` are projects as a user has them, ``data.py`` and ``covtype.py`` their data;
``command.py`` has the command's words, ``settings.py`` says what is trained, ``run.py`` trains, ``results.py`` shows
what came of it.
"""
