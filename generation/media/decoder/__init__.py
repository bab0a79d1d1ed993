"""The program that opens clips: started by sandbox.py for one file, under limits, and gone when it is done.

A clip comes from a machine that is not ours, and decoders crash. So this runs apart from the worker, knows neither
Django nor the packages around it (it is started as a package of its own, whose modules import nothing of ours but each
other), sees no environment, and answers one line of JSON on stdout: {"facts": {…}}, {"unplayable": "why"} or
{"failed": "what went wrong on our side"}.

    python -m decoder LIMITS_JSON probe SOURCE
    python -m decoder LIMITS_JSON playable SOURCE DESTINATION
    python -m decoder LIMITS_JSON poster SOURCE POSTER
    python -m decoder LIMITS_JSON prepare SOURCE DESTINATION POSTER
"""
