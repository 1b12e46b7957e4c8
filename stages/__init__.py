"""DVC's stages: thin scripts that read the parameters, call the library and write one stage's outputs."""
