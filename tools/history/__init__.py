"""Check recorded histories of client operations for causal consistency.

The package is independent: it imports nothing of the store, so it cannot share a mistake with the code that it checks.

Theory of operation
    The checker searches one history for the bad patterns of Bouajjani, Enea, Guerraoui and Hamza, "On verifying causal
    consistency" (POPL 2017), in one pass. Every written value is unique per key, so a read identifies its write. The
    *causal order* co is the transitive closure of session order, reads-from and ``after`` (metadata that one client
    hands to another). The checker never builds this relation: each write has one vector clock, session -> how many
    operations of that session are in its causal past (Fidge, Mattern). Of the earlier writes of a key, only the last
    one per session has to be compared with a read; a conclusion about an earlier one follows from it. The running time
    is close to (operations + reads x sessions that wrote the key) and never quadratic.

Patterns, and the promises that they break (docs/contract.md, section 1, P1 to P3)
    CyclicCO         a cycle of causes: some operation read a value that was not yet written
    ThinAirRead      a read returns a value, or a version, that no operation wrote
    WriteCORead      a read returns a value although its causal past contains a write that replaced the value
    DeletedRead      the same, and the later write is a delete: the value reappeared
    FracturedRead    the same, and the read returns another key of the later write: half of a transaction is visible
    WriteCOInitRead  a key reads as absent although its causal past contains a write that nothing can have removed
    CyclicCF         reads imply contradictory orders of conflicting writes (two or more of them in a cycle), so no
                     arbitration explains all reads ("causal convergence")
    DotReuse         two operations have the same update id
    FeedGap          a response of the change feed does not continue the one before it

A transaction or listing is one operation. All its reads are one snapshot, taken before its writes.

Change feeds (docs/contract.md, section 2.9)
    A record of a feed has each response that a follower received, in order. The checker keeps the copy that the
    contract tells a client to keep. While ``more`` is true, a response is a read of the keys that it tells. When
    ``more`` is false, it is a listing of the whole copy: every key with the prefix, the absent ones too. So the
    patterns above say whether the copy is a causal snapshot with whole transactions, and, because the responses are
    one session, whether it ever goes backwards. ``check_feeds`` compares the last copy with the final state.

Assumptions, which keep the checker from reporting a legal history
    * A session carries the metadata of each response to its next request. A write with an unknown outcome returned no
      metadata: its causal past is that of its session, but the session continues without it until it reads the value.
    * A write replaces every version of the key that its replica has. Its causal past is applied there, so the write
      replaces the versions in its causal past too.
    * A delete removes every version that its replica has, possibly more than its client knew. So any delete or expiring
      write of a key excuses an absent read, with two exceptions: a delete that causally precedes the missed write did
      not have it, and a delete that causally follows the read came too late. With ``exact=True`` the operations'
      ``replaces`` say what each one removed.
    * CyclicCF: the store picks the version with the highest (hybrid timestamp, replica id) among those that nothing
      replaced; this pair is the arbitration order. If read r has w1 in its causal past and returns w2, then w1, or the
      last write that replaced w1, lost to w2. **This holds only if the timestamp of each write is higher than all
      timestamps that its replica has applied** (a hybrid clock that observes what it receives; ``check_survivors``
      tests this). A counterexample without it: v2 (timestamp 5) replaces v1 (10), and v3 (7) is concurrent to both. A
      reader of v1 and v3 returns v1, so v3 < v1. A reader of all three returns v3, so v2 < v3. But v1 < v2 causally:
      a cycle although every replica is correct. Deletes break the rule too: a delete of w1 alone makes an older w2
      visible. So the checker uses such a pair only if no delete or expiring write can have removed w1 before r, by
      the rule for absent reads. ``arbitration=False`` disables this pattern.
    * Writes with status "lost" died with their replica, and the store reported the loss to clients (docs/contract.md,
      section 2.8). The checker makes no claims about these writes or about what they replaced. As deletes they still
      excuse absent reads.
    * Expiry depends on each replica's wall clock (docs/contract.md, section 2.5). A key that is visible, then absent,
      then visible again is no violation. Neither is an expiring version beside a later one that would have replaced it:
      it may have expired at the replica of the later write first. With ``exact=True`` the operations' ``replaces`` say
      whether it had.

File format
    JSON lines, one operation per line. Operations of one session appear in session order; sessions may interleave.
    ``Operation`` documents the fields; a field with its default value may be omitted. Values are strings or integers;
    ``null`` means "absent" in reads and "deleted" in writes. Record a DELETE that returned 404 as a get that read null.
    Rejected operations may be omitted. A client that starts without metadata is a new session.

    A response of ``/changes`` has the kind "changes", the ``prefix``, and as ``reads`` its changes: the value, or null
    for a key that was deleted. ``reset`` and ``more`` are those of the response; ``since`` and ``next`` are the tokens,
    both or neither. A session may follow several prefixes. Its responses for one prefix are one feed: ``since`` is the
    ``next`` of the response before, or "" if the follower begins again.

        {"session":"eve","kind":"changes","prefix":"a","reads":[["album","a1"]],"reset":true,"next":"T1","since":""}
        {"session":"eve","kind":"changes","prefix":"a","reads":[["album",null]],"next":"T2","since":"T1"}

        {"session":"ann","kind":"put","writes":[["photo","p1"]]}
        {"session":"ann","kind":"put","writes":[["album","a1"]]}
        {"session":"bob","kind":"list","reads":[["album","a1"],["photo",null]]}

    plume.py reads and writes the text format of other checkers.

    This history is a WriteCOInitRead: Bob's listing contains the album but not the photo, which Ann wrote before it.
"""

from tools.history.checker import check
from tools.history.feeds import check_feeds
from tools.history.final_state import FINAL_SESSION, Survivor, check_convergence, check_durability, check_survivors
from tools.history.operations import HistoryError, Kind, Operation, Status, Value, describe, dump, load, with_ids
from tools.history.plume import dump_plume, load_plume
from tools.history.report import Report, Violation
from tools.history.shrink import shrink

__all__ = [
    "FINAL_SESSION",
    "HistoryError",
    "Kind",
    "Operation",
    "Report",
    "Status",
    "Survivor",
    "Value",
    "Violation",
    "check",
    "check_convergence",
    "check_durability",
    "check_feeds",
    "check_survivors",
    "describe",
    "dump",
    "dump_plume",
    "load",
    "load_plume",
    "shrink",
    "with_ids",
]
