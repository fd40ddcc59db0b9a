"""A population of customers whose truth is known: when they arrive, buy, spend and leave, and what of it a shop would see.

Layers, each drawn from generators of its own (`draws`): `season` (the clock), `purchases` and `spend` (the models), `baskets`, `journeys`,
`order_life` and `profile_life` (what they look like to a shop), `shop` (all of it, by day and on the wire), `truth` (what stays sealed).
"""

from generator.population_model.options import PopulationOptions
from generator.population_model.purchases import BgNbd
from generator.population_model.season import Campaign, Season, SeasonShape
from generator.population_model.shop import PopulationShop
from generator.population_model.spend import GammaGamma

__all__ = ["BgNbd", "Campaign", "GammaGamma", "PopulationOptions", "PopulationShop", "Season", "SeasonShape"]
