"""How hypothesis draws its cases: the same ones each time, so that a commit passes or fails and not a day.

New ones: ``make test ARGS='--hypothesis-profile=explore'``; what it finds becomes a test of its own.
"""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("repeatable")
