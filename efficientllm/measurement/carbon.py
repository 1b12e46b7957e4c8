"""Grams of CO2-equivalent, by CodeCarbon's own tables of the countries' grids."""

from efficientllm.errors import ParameterError, did_you_mean
from efficientllm.measurement.energy import JOULES_PER_KWH


def check_country(country_iso_code: str) -> None:
    """Checks that CodeCarbon knows a country's grid; it would silently take the world's mean.

    Raises:
        ParameterError: CodeCarbon has no data for the country.
    """
    from codecarbon.input import DataSource

    if country_iso_code not in (known := DataSource().get_global_energy_mix_data()):
        near = did_you_mean(country_iso_code, known)
        raise ParameterError(
            f"parameter 'measure.country_iso_code' is {country_iso_code!r}, for which CodeCarbon has no grid data; {near}"
            "any three-letter code of ISO 3166 that its data holds will do, such as USA, DEU, FRA or CHN"
        )


def carbon_dioxide_grams(joules: float, country_iso_code: str) -> float:
    """Converts energy to grams of CO2-equivalent by CodeCarbon's own offline data for a country's grid.

    Raises:
        ParameterError: CodeCarbon has no data for the country.
    """
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    check_country(country_iso_code)
    data = DataSource()
    kilograms = Emissions(data).get_country_emissions(
        Energy.from_energy(kWh=joules / JOULES_PER_KWH), GeoMetadata(country_iso_code=country_iso_code)
    )
    return float(kilograms) * 1000
