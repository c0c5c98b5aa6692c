"""Where upstream's task maker is when it comes to a task: so that only that task needs to be made.

To load one variation of one task, upstream makes all 7,207 of all tasks: nine tenths of a reset.
What they leave behind is the counter of object ids and the state of the random numbers, and with
these the texts. Both advance by the same amount whatever the variation (a test counts them), so the
task alone can be made from there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

_PACKAGE = "scienceworld.tasks.specifictasks"
_MULTIPLIER, _INCREMENT, _MASK = 0x5DEECE66D, 0xB, (1 << 48) - 1
"""Of the generator of `java.util.Random`."""


class Turn(NamedTuple):
    """A task's turn when upstream makes all tasks."""

    maker: str
    """Its class."""
    mode: str
    """What its constructor takes."""
    ids: int
    """Object ids given before."""
    draws: int
    """Random numbers drawn before."""

    @property
    def class_name(self) -> str:
        return f"{_PACKAGE}.{self.maker}"

    def seed(self, variation: int) -> int:
        """What `java.util.Random.setSeed` takes to continue where `draws` numbers were drawn."""
        multiplier, increment = _jump(self.draws)
        state = (variation ^ _MULTIPLIER) * multiplier + increment
        return (state & _MASK) ^ _MULTIPLIER


@lru_cache(maxsize=64)
def _jump(draws: int) -> tuple[int, int]:
    """Multiplier and increment of that many steps of the generator at once."""
    multiplier, increment = 1, 0
    for _ in range(draws):
        multiplier = multiplier * _MULTIPLIER & _MASK
        increment = (increment * _MULTIPLIER + _INCREMENT) & _MASK
    return multiplier, increment


TURNS: dict[str, Turn] = {
    "change-the-state-of-matter-of": Turn(
        "TaskChangeOfState", "change the state of matter of", 0, 0
    ),
    "melt": Turn("TaskChangeOfState", "melt", 90, 8),
    "boil": Turn("TaskChangeOfState", "boil", 180, 16),
    "freeze": Turn("TaskChangeOfState", "freeze", 270, 24),
    "power-component": Turn("TaskElectricCircuit", "power component", 360, 32),
    "power-component-renewable-vs-nonrenewable-energy": Turn(
        "TaskElectricCircuit", "power component (renewable vs nonrenewable energy)", 390, 32
    ),
    "test-conductivity": Turn("TaskElectricalConductivity", "test conductivity", 420, 32),
    "test-conductivity-of-unknown-substances": Turn(
        "TaskElectricalConductivity2", "test conductivity of unknown substances", 576, 32
    ),
    "find-living-thing": Turn("TaskFindLivingNonLiving", "find living thing", 696, 56),
    "find-non-living-thing": Turn("TaskFindLivingNonLiving", "find non-living thing", 1986, 216),
    "find-plant": Turn("TaskFindLivingNonLiving", "find plant", 3276, 376),
    "find-animal": Turn("TaskFindLivingNonLiving", "find animal", 4566, 536),
    "grow-plant": Turn("TaskGrowPlant", "grow plant", 5856, 696),
    "grow-fruit": Turn("TaskGrowPlant", "grow fruit", 6657, 696),
    "chemistry-mix": Turn("TaskChemistryMix", "chemistry mix", 7458, 696),
    "chemistry-mix-paint-secondary-color": Turn(
        "TaskChemistryMixPaint", "chemistry mix paint (secondary color)", 7770, 696
    ),
    "chemistry-mix-paint-tertiary-color": Turn(
        "TaskChemistryMixPaint", "chemistry mix paint (tertiary color)", 7881, 698
    ),
    "lifespan-longest-lived": Turn("TaskLifeSpan", "lifespan (longest lived)", 7992, 700),
    "lifespan-shortest-lived": Turn("TaskLifeSpan", "lifespan (shortest lived)", 8037, 700),
    "lifespan-longest-lived-then-shortest-lived": Turn(
        "TaskLifeSpan", "lifespan (longest lived then shortest lived)", 8082, 700
    ),
    "identify-life-stages-1": Turn("TaskIdentifyLifeStages1", "identify life stages 1", 8127, 700),
    "identify-life-stages-2": Turn("TaskIdentifyLifeStages2", "identify life stages 2", 8757, 700),
    "inclined-plane-friction-named-surfaces": Turn(
        "TaskInclinedPlane1", "inclined plane friction (named surfaces)", 11607, 780
    ),
    "inclined-plane-friction-unnamed-surfaces": Turn(
        "TaskInclinedPlane2", "inclined plane friction (unnamed surfaces)", 11757, 780
    ),
    "inclined-plane-determine-angle": Turn(
        "TaskInclinedPlane3", "inclined plane determine angle", 11817, 780
    ),
    "mendelian-genetics-known-plant": Turn(
        "TaskMendelianGenetics1", "mendelian genetics (known plant)", 11877, 780
    ),
    "mendelian-genetics-unknown-plant": Turn(
        "TaskMendelianGenetics2", "mendelian genetics (unknown plant)", 12237, 920
    ),
    "use-thermometer": Turn("TaskUseInstrumentThermometer", "use thermometer", 12837, 2000),
    "measure-melting-point-known-substance": Turn(
        "TaskUseInstrumentThermometer2", "measure melting point (known substance)", 14010, 2720
    ),
    "measure-melting-point-unknown-substance": Turn(
        "TaskUseInstrumentThermometer3", "measure melting point (unknown substance)", 14313, 2745
    ),
}
ALL_IDS = 17196
"""Object ids given when all tasks are made."""
