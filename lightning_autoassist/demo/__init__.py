"""What ``autoassist demo`` does: a small network, trained in full, uniformly and with AutoAssist.

``project.py`` is a project as a user has it, ``data.py`` its images; ``run.py`` runs it three times.
"""
