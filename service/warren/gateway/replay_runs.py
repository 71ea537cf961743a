"""Background execution of replays in this gateway."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from warren.client.replay import Progress, Replaying
from warren.errors import StoreUnavailable, WarrenError
from warren.gateway.live.broadcast import Heard
from warren.settings import Settings
from warren.store.database import Store
from warren.store.replays import Replay, Replays
from warren.support.loops import Loops

log = structlog.get_logger(__name__)

PAUSE: Final = 2.0  # seconds before a replay retries after the store failed


class Carrier:
    """Carries replays out. Those that are under way when the gateway stops are paused, and can be resumed."""

    def __init__(self, store: Store, settings: Settings, heard: Heard, loops: Loops) -> None:
        self._store, self._settings, self._heard, self._loops = store, settings, heard, loops
        self._carried: set[str] = set()
        self._progress: dict[str, Progress] = {}

    def carries(self, replay_id: str) -> bool:
        """Whether a replay is being carried out here."""
        return replay_id in self._carried

    def start(self, replay: Replay) -> None:
        """Begin with a replay, or go on with it."""
        self._carried.add(replay.replay_id)
        self._loops.start(f"replay {replay.replay_id}", self._carry_out(replay))

    def progress(self, replay_id: str) -> Progress | None:
        """The progress of a replay that this gateway carries out."""
        return self._progress.get(replay_id)

    async def _carry_out(self, replay: Replay) -> None:
        replay_id = replay.replay_id
        try:
            while not await self._try(replay):
                await asyncio.sleep(PAUSE)
                replay = await self._again(replay)
        except WarrenError as error:
            log.error("replay.failed", replay_id=replay_id, error=str(error))
        finally:
            self._progress.pop(replay_id, None)
            self._carried.discard(replay_id)

    async def _try(self, replay: Replay) -> bool:
        """Carry it out to its end. False if the store went away before that."""

        def keep(progress: Progress) -> None:
            self._progress[replay.replay_id] = progress
            for problem in progress.problems:
                log.warning("replay.left", task_id=str(problem.task_id), why=problem.message)

        try:
            end = await Replaying(self._store, self._settings, replay, self._heard.breakers()).run(keep)
        except StoreUnavailable as error:
            log.warning("replay.waits", replay_id=replay.replay_id, error=str(error))
            return False
        log.info("replay.ended", replay_id=replay.replay_id, phase=end.phase, reason=end.reason)
        return True

    async def _again(self, replay: Replay) -> Replay:
        """The replay as the store has it now, or as it was."""
        try:
            return await Replays(self._store).get(replay.replay_id)
        except StoreUnavailable:
            return replay
