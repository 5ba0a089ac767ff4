"""
Owns who may read what: what is public is for anybody, everything else for whom the hub lets in.

Knows nothing of bytes.
Invariants: before restricted content is handed out, the hub says yes to this very token, asked
after the caller came; a yes of the last GRANT seconds stands in for it only while little is left of
the hub's quota; a hub that does not answer is never a yes, unless the operator allowed a grace; a
refusal takes back at once what was granted, or public. What is asked of the hub for a name that is
hidden takes as long as for one that does not exist.
Source: design.md §7; docs/decisions/0019-how-old-a-yes-may-be.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from contextlib import AbstractContextManager, nullcontext

from p2pcache.core.credentials import Credentials
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.context import Context
from p2pcache.engine.fresh import FreshFlight
from p2pcache.engine.grants import Grants
from p2pcache.engine.silence import Silences
from p2pcache.engine.single import SingleFlight
from p2pcache.engine.visibility import (
    REFUSED,
    UNANSWERED,
    Visibility,
    choose_file,
    is_scarce_now,
)
from p2pcache.errors import (
    P2PCacheError,
    RepositoryNotFoundError,
    UpstreamAuthError,
    UpstreamUnreachableError,
)

log = logging.getLogger(__name__)

# A hidden repository is refused again as fast as one that the librarian knows not to exist.
REFUSAL_TTL_S = 2.0
# Distinct (token, snapshot) pairs within these seconds; the oldest goes.
REFUSALS_MAX = 4096
# What is said of a repository, or of a token, as a whole; a gated one shows that it is there.
_HIDING = (RepositoryNotFoundError, UpstreamAuthError)


class Access:
    """The gatekeeper. Event loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.visibility = Visibility(context)
        # Shared with whoever asks about names that are not here: both are told the same.
        self.silences = Silences(context.clock)
        self._grants = Grants(context.clock)
        self._questions = FreshFlight()
        # What was asked of a token and a snapshot while nobody knew whether it is public.
        self._first_questions = SingleFlight()
        # Not the errors themselves: these hold on to the frames that they passed through.
        self._refusals: OrderedDict[
            tuple[bytes, SnapshotId], tuple[float, type[P2PCacheError], str]
        ] = OrderedDict()
        # Answers that only the operator's grace allowed.
        self.grace_answers_total = 0
        # What the hub said when it was asked about a token: yes, no, unanswered.
        self.token_checks: Counter[str] = Counter()

    # --- what anybody may read ---

    async def is_public(self, snapshot: Snapshot) -> bool:
        """Return whether the hub gives this snapshot's files to anybody. See Visibility."""
        return await self.visibility.is_public(snapshot)

    @property
    def unanswered_s(self) -> float:
        """Return when the hub last left a question for a proof unanswered."""
        return self.visibility.unanswered_s

    async def may_share(self, snapshot: Snapshot) -> bool:
        """Return whether peers may have the list of a snapshot: its proof is young enough."""
        age_s = await self.visibility.find_age_s(snapshot.id)
        if age_s is None:
            return False
        is_recent = 0 <= age_s < self._context.settings.shared_ttl_s
        return is_recent or await self.visibility.is_public(snapshot)

    async def note_public(self, snapshot_id: SnapshotId) -> None:
        """Record that the hub gave a file to an anonymous caller just now."""
        await self.visibility.note_public(snapshot_id)

    # --- what a caller may read ---

    async def check_may_read(
        self, snapshot: Snapshot, credentials: Credentials, path: str | None = None
    ) -> bool:
        """
        Insist that this caller may read this snapshot; return whether anybody may.

        Args:
            snapshot: Which.
            credentials: What the caller shows.
            path: The file that is wanted; the hub is asked about that one.

        Raises:
            RepositoryNotFoundError, UpstreamAuthError: The hub refuses this caller.
            UpstreamUnreachableError: The hub cannot be asked, and the content is not public.
        """
        if await self.visibility.find_age_s(snapshot.id) is not None:
            if await self.visibility.is_public(snapshot):
                await self._check_token(snapshot, credentials, path)
                return True
            await self._ask(snapshot, credentials, path)
            return False
        self._check_not_hidden(snapshot, credentials)
        with self._asking_as_unknown(snapshot, credentials):
            if credentials.is_anonymous:
                proof = await self.visibility.prove(snapshot)
                if proof.error is not None:
                    self.note_hidden(snapshot, credentials, proof.error)
                    raise proof.error
                return True
            if not self.visibility.was_refused_lately(snapshot.id):
                return await self._ask_both(snapshot, credentials, path)
            await self._ask(snapshot, credentials, path)
            return False

    async def may_list(self, snapshot: Snapshot, credentials: Credentials) -> bool:
        """
        Return whether metadata may be answered from here; else the hub has to be asked.

        The hub shows some of what is not public: the file list of a gated repository.

        Raises:
            UpstreamAuthError: The content is public, and the hub refuses the token.
            RepositoryNotFoundError: The hub has just denied it to this caller.
        """
        if await self.visibility.find_age_s(snapshot.id) is None:
            self._check_not_hidden(snapshot, credentials)
            if self.visibility.was_refused_lately(snapshot.id):
                with self._asking_as_unknown(snapshot, credentials):
                    return False
            if not credentials.is_anonymous:
                return await self._may_list_anew(snapshot, credentials)
            # What the hub would be asked for this caller is the proof itself.
            with self._asking_as_unknown(snapshot, credentials):
                proof = await self.visibility.prove(snapshot)
                if isinstance(proof.error, (RepositoryNotFoundError, *UNANSWERED)):
                    self.note_hidden(snapshot, credentials, proof.error)
                    raise proof.error
                return proof.is_public
        if not await self.visibility.is_public(snapshot):
            return False
        await self._check_token(snapshot, credentials, None)
        return True

    async def knows(self, snapshot_id: SnapshotId, credentials: Credentials) -> bool:
        """
        Return whether a caller has reason to think that a snapshot is here: it was proven public,
        or the hub let him in. For everybody else it has to be like one that is not.
        """
        if self._grants.find_age_s(credentials, snapshot_id) is not None:
            return True
        return await self.visibility.find_age_s(snapshot_id) is not None

    async def may_show(
        self, reference: ModelReference, snapshot: Snapshot | None, credentials: Credentials
    ) -> bool:
        """
        Return whether a caller may know how much of a snapshot is here.

        Who shows a token has the hub asked about it, whether there is such a snapshot here or not:
        how long an answer takes shall not tell.
        """
        was_public = (
            snapshot is not None and await self.visibility.find_age_s(snapshot.id) is not None
        )
        if snapshot is not None and was_public and await self.visibility.is_public(snapshot):
            return True
        if credentials.is_anonymous:
            return False
        try:
            if snapshot is None:
                await self._context.hub.resolve(reference.repo, reference.revision, credentials)
                return False
            await self._ask(snapshot, credentials, None)
        except P2PCacheError as error:
            log.debug("%s is not shown: %s", reference, error)
            return False
        return True

    # --- what was heard elsewhere ---

    async def note_refused(self, repo: RepoId, credentials: Credentials) -> None:
        """Take in that the hub refused a repository to a caller; what is public is asked anew."""
        self.visibility.note_refused(repo, is_to_all=credentials.is_anonymous)
        if not credentials.is_anonymous:
            self._grants.drop_repo(credentials, repo)

    def note_hidden(
        self, snapshot: Snapshot, credentials: Credentials, error: P2PCacheError
    ) -> None:
        """Take in that the hub denied a repository, or the token, if it did."""
        if type(error) not in _HIDING:
            return  # a gated one shows that it is there
        key = (self._grants.mark(credentials), snapshot.id)
        self._refusals.pop(key, None)
        until_s = self._context.clock.monotonic_s() + REFUSAL_TTL_S
        self._refusals[key] = (until_s, type(error), str(error))
        if len(self._refusals) > REFUSALS_MAX:
            self._refusals.popitem(last=False)

    def note_known(self, hub: str, credentials: Credentials) -> None:
        """Take in that a hub did not refuse a token."""
        if not credentials.is_anonymous:
            self._grants.note(credentials, hub)

    async def close(self) -> None:
        """Stop asking."""
        await self._first_questions.close()
        await self._questions.close()
        await self.visibility.close()

    # --- asking ---

    def _asking_as_unknown(
        self, snapshot: Snapshot, credentials: Credentials
    ) -> AbstractContextManager[None]:
        """Enclose a question about what a caller should not be able to tell from a wrong name."""
        if self._grants.find_age_s(credentials, snapshot.id) is not None:
            return nullcontext()
        return self.silences.asking(snapshot.id.repo.hub)

    async def _ask_both(
        self, snapshot: Snapshot, credentials: Credentials, path: str | None
    ) -> bool:
        """
        Ask as anybody and as this caller at once, so that it takes as long as one question.

        Who comes meanwhile waits for both answers, whatever file he wants: where anybody may read,
        or the hub hides the repository from him, he needs no question of his own.
        """
        key = (self._grants.mark(credentials), snapshot.id)
        is_mine = not self._first_questions.is_under_way(key)
        question = self._first_questions.start(
            key, lambda: self._ask_until_proven(snapshot, credentials, path)
        )
        proof = await self.visibility.prove(snapshot)
        try:
            await asyncio.shield(question)
        except UNANSWERED:
            if not proof.is_public:
                raise
        except REFUSED as error:
            # A no to another file says nothing of this one, a no to the repository does.
            if is_mine or type(error) in _HIDING:
                raise
        if not proof.is_public and not is_mine:
            await self._ask(snapshot, credentials, path)
        return proof.is_public

    async def _ask_until_proven(
        self, snapshot: Snapshot, credentials: Credentials, path: str | None
    ) -> None:
        """Ask as this caller; end with the proof, so that who comes later knows what it said."""
        proof = self.visibility.start_proof(snapshot)
        try:
            await self._ask(snapshot, credentials, path)
        finally:
            await asyncio.wait({proof})

    async def _may_list_anew(self, snapshot: Snapshot, credentials: Credentials) -> bool:
        """Ask whether a snapshot is public (it may have been opened); a stranger hears his no."""
        try:
            with self._asking_as_unknown(snapshot, credentials):
                return await self._ask_both(snapshot, credentials, None)
        except UpstreamUnreachableError:
            raise  # as for a name that nobody has
        except (RepositoryNotFoundError, UpstreamAuthError) as error:
            if type(error) in _HIDING:
                raise
            return False  # its list may be shown
        except (*UNANSWERED, *REFUSED):
            return False

    async def _ask(self, snapshot: Snapshot, credentials: Credentials, path: str | None) -> None:
        """Insist that the hub lets this caller read a file now, or did where that is enough."""
        age_s = self._grants.find_age_s(credentials, snapshot.id)
        settings = self._context.settings
        is_granted = age_s is not None and age_s < settings.grant_ttl_s
        if is_granted and is_scarce_now(self._context):
            return
        try:
            await self._ask_hub(snapshot, credentials, path)
        except UNANSWERED as error:
            if age_s is None or age_s >= settings.offline_grace_s:
                raise
            self.grace_answers_total += 1
            log.warning(
                "%s is given out under --offline-grace: the hub said yes to this caller %.0f s "
                "ago and does not answer now (%s)",
                snapshot.id,
                age_s,
                error.code,
            )
        except REFUSED as error:
            self._grants.drop(credentials, snapshot.id)
            self._note_refusal(error, snapshot.id.repo.hub, credentials)
            self.note_hidden(snapshot, credentials, error)
            raise
        else:
            self._grants.note(credentials, snapshot.id)
            self._grants.note(credentials, snapshot.id.repo.hub)

    async def _ask_hub(
        self, snapshot: Snapshot, credentials: Credentials, path: str | None
    ) -> None:
        hub = self._context.hub
        if not snapshot.files:
            # No file to ask for: whoever may see the repository may see that it is empty.
            await hub.resolve(snapshot.id.repo, snapshot.id.commit, credentials)
            return
        wanted = choose_file(snapshot, path).path
        key = (self._grants.mark(credentials), snapshot.id, wanted)

        async def ask() -> None:
            answer = "yes"
            try:
                await hub.check_access(snapshot.id, wanted, credentials)
            except UNANSWERED:
                answer = "unanswered"
                raise
            except REFUSED:
                answer = "no"
                raise
            finally:
                self.token_checks[answer] += 1

        await self._questions.run(key, ask)

    async def _check_token(
        self, snapshot: Snapshot, credentials: Credentials, path: str | None
    ) -> None:
        """
        Refuse a token that the hub refuses, though anybody may have the content: who thinks that
        he is signed in shall hear that he is not, as he would from the hub.
        """
        if credentials.is_anonymous:
            return
        hub = snapshot.id.repo.hub
        age_s = self._grants.find_age_s(credentials, hub)
        if age_s is not None and age_s < self._context.settings.grant_ttl_s:
            return
        try:
            await self._ask_hub(snapshot, credentials, path)
        except UNANSWERED as error:
            log.debug("a token was not looked at: %s", error)
        except REFUSED as error:
            self._note_refusal(error, hub, credentials)
            self.visibility.note_refused(snapshot.id.repo)
            raise
        else:
            self._grants.note(credentials, hub)

    def _check_not_hidden(self, snapshot: Snapshot, credentials: Credentials) -> None:
        refusal = self._refusals.get((self._grants.mark(credentials), snapshot.id))
        if refusal is not None and self._context.clock.monotonic_s() < refusal[0]:
            raise refusal[1](refusal[2])

    def _note_refusal(self, error: P2PCacheError, hub: str, credentials: Credentials) -> None:
        if isinstance(error, UpstreamAuthError) and "Invalid credentials" in str(error):
            # Nobody's any more, for whatever it was good there.
            self._grants.drop_hub(credentials, hub)
