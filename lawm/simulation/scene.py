"""What a picture may show besides the world: distractors that move at random, and a camera that shakes.

Both have nothing to do with the actions, which is what they are for: do latent actions hold what the agent does, or
whatever moves (Nikulin et al. 2025, latent actions with distractors). Each is drawn from a generator of its own, seeded
by the episode, so that neither changes the physics, the policy, or the other. Lengths are in units of the arena, whose
side has ARENA of them; an episode's rows are its frames. Legend: F frames, K distractors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

ARENA = 512.0
MOST_DISTRACTORS = 32
SPEED = 200.0  # of a distractor along each axis, units a second (standard deviation); the agent's is about as much
STEADY_S = 0.5  # for so long a distractor keeps to its way (time constant of its speed's autocorrelation)
RADIUS = (16.0, 40.0)
COLOURS = ((214, 69, 65), (245, 171, 53), (155, 89, 182), (38, 166, 154), (233, 30, 99), (121, 85, 72))
"""None is the agent's blue, the block's grey or the goal's green."""
SHAKE_S = 0.4  # time constant of the camera's motion
SHAKE = (10.0, 10.0, 2.0, 0.02)  # standard deviations: right and down (units), turn (degrees), logarithm of the zoom
SHAKE_MOST = 2.0  # standard deviations that the camera never exceeds
MOST_SHAKE = 3.0  # of which a picture's corners still show the white around the arena
WHITE = (255, 255, 255)  # gym-pusht's background


@dataclass(frozen=True)
class Scene:
    """What an episode's pictures show besides the world, frame by frame.

    `places` float32 [F, K, 2]: the distractors' centres; `radii` [K], `colours` [K, 3], and `over` bool [K]: drawn over
    the world, and else under it. `camera` float32 [F, 4]: the picture's shift to the right and down, its turn
    (degrees, counter-clockwise) and the logarithm of its zoom."""

    places: np.ndarray
    radii: np.ndarray
    colours: np.ndarray
    over: np.ndarray
    camera: np.ndarray

    @property
    def nuisances(self) -> np.ndarray:
        """Float32 [F, 2 K + 4]: all that moves without an action."""
        return np.concatenate([self.places.reshape(len(self.places), -1), self.camera], axis=1).astype(np.float32)


def nuisance_names(distractors: int) -> tuple[str, ...]:
    """What the columns of `Scene.nuisances` are."""
    of_each = tuple(f"distractor {k} {axis}" for k in range(distractors) for axis in "xy")
    return (*of_each, "camera x", "camera y", "camera turn", "camera zoom")


def described(distractors: int, shake: float) -> str:
    """What results say of such pictures; empty where there is nothing of it."""
    moving = f"{distractors} distractor{'' if distractors == 1 else 's'}" if distractors else ""
    return ", ".join(filter(None, (moving, f"camera shake {shake:g}" if shake else "")))


def make_scene(seed: int, number: int, frames: int, rate_hz: float, distractors: int, shake: float) -> Scene:
    """The scene of episode `number` of `seed`, at `rate_hz` frames a second. `shake` scales SHAKE (0: still)."""
    rng = np.random.default_rng([seed, number, 1])
    speed = SPEED * _wandering(rng, frames, (distractors, 2), STEADY_S * rate_hz)
    start = rng.uniform(0, ARENA, (distractors, 2))
    way = start + np.concatenate([np.zeros((1, distractors, 2)), np.cumsum(speed[:-1] / rate_hz, axis=0)])
    places = ARENA - np.abs(way % (2 * ARENA) - ARENA)  # walls turn it back
    radii = rng.uniform(*RADIUS, distractors)
    colours = np.array(COLOURS, np.uint8)[rng.integers(len(COLOURS), size=distractors)]
    over = np.arange(distractors) % 2 == 1
    camera_rng = np.random.default_rng([seed, number, 2])
    moved = np.clip(_wandering(camera_rng, frames, (4,), SHAKE_S * rate_hz), -SHAKE_MOST, SHAKE_MOST)
    camera = shake * np.array(SHAKE) * moved
    return Scene(places.astype(np.float32), radii, colours, over, camera.astype(np.float32))


def _wandering(rng: np.random.Generator, frames: int, shape: tuple[int, ...], steady: float) -> np.ndarray:
    """[frames, *shape]: numbers of mean 0 and variance 1 that follow each other with correlation exp(-1 / steady)."""
    kept = np.exp(-1 / steady)
    noise = rng.normal(size=(frames, *shape))
    found = np.empty_like(noise)
    found[0] = noise[0]
    for f in range(1, frames):
        found[f] = kept * found[f - 1] + np.sqrt(1 - kept**2) * noise[f]
    return found


def draw(pygame: Any, world: Any, scene: Scene, frame: int) -> Any:
    """A picture (pygame Surface) of the world with the frame's distractors, as the frame's camera sees it."""
    picture = pygame.Surface(world.get_size())
    picture.fill(WHITE)
    unit = world.get_width() / ARENA

    def discs(over: bool) -> None:
        for k in np.flatnonzero(scene.over == over):
            place = tuple(float(v) * unit for v in scene.places[frame, k])
            pygame.draw.circle(picture, tuple(map(int, scene.colours[k])), place, float(scene.radii[k]) * unit)

    discs(over=False)
    world.set_colorkey(WHITE)  # what is under the world shows where the world has nothing
    picture.blit(world, (0, 0))
    discs(over=True)
    right, down, turn, zoom = map(float, scene.camera[frame])
    if not (right or down or turn or zoom):
        return picture
    width, height = world.get_size()
    around = pygame.Surface((2 * width, 2 * height))  # else what comes into view would be black
    around.fill(WHITE)
    around.blit(picture, (width // 2, height // 2))
    moved = pygame.transform.rotozoom(around, turn, float(np.exp(zoom)))
    seen = pygame.Surface((width, height))
    centre = (width / 2 + right * unit, height / 2 + down * unit)
    seen.blit(moved, moved.get_rect(center=tuple(round(v) for v in centre)))
    return seen
