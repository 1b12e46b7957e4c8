"""An English corpus from registry packages: catalogue, packages, readers by format, cleaning, building."""
