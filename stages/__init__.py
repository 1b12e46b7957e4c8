"""DVC's stages: thin scripts that read the parameters, call the library and write one stage's outputs.

A stage that runs in a preloaded process imports inside `main` what that needs, the parameters too: the process that DVC starts
only passes its arguments on, some ninety times in one run.
"""
