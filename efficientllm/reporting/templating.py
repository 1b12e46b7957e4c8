"""How the report's templates, and those of the small pages in its style, are rendered."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from efficientllm.reporting.text import identifier, number


def template_environment(package: str) -> Environment:
    """Returns an environment in which every text is escaped and a name that is not given is an error.

    Args:
        package: The package in whose folder `templates` the templates are.
    """
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"identifier": identifier, "number": number}
    return environment
