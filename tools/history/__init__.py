"""Judge recorded histories: whether what clients saw is causally consistent.

Theory of operation. The bad patterns of Bouajjani, Enea, Guerraoui, Hamza, "On verifying causal consistency" (POPL
2017) are looked for in one pass. Every written value is unique per key, so a read names its write. The *causal order*
co is the transitive closure of session order, reads-from, and ``after`` (metadata handed from client to client). It is
never built: each write keeps one vector, session -> how far that session lies in its past (Fidge, Mattern). Of the
earlier writes of a key only the last one per session needs looking at: what holds for an earlier one holds for it.
Time is near to (operations + reads x sessions that wrote the key), and never quadratic.

Patterns, each with what Causeway promises in its place (SPEC P1-P3):

    CyclicCO         causes follow their effects: somebody read what was not written yet
    ThinAirRead      a read shows a value, or a version, that nobody wrote
    WriteCORead      a read shows a value although its causal past holds a write that followed that value
    DeletedRead      the same where a delete followed the value: it came back
    FracturedRead    the same where the read itself shows another key of that newer write: a transaction seen by half
    WriteCOInitRead  a key reads as absent although its causal past holds a write that nothing can have removed
    CyclicCF         two reads tell of one pair of conflicting writes, or a ring of them, in contrary orders: no
                     arbitration explains both ("causal convergence")
    DotReuse         two operations have the same update id

Transactions and listings are one operation each: all its reads are one snapshot, before its writes.

What is assumed, so that a legal history is never blamed:

* A session carries its metadata from each answer to the next request. A write whose outcome is not known ("unknown")
  gave no metadata: it has its session's past, but the session goes on without it until somebody reads it.
* A write replaces all that its replica held of the key. Its causal past was applied there, so it replaced that too.
* Deletes: one removes what its replica held, which can be more than its client knew. So an absent read is excused by
  any delete or expiring write of the key, except where that one causally precedes the write that is missed (it did
  not have it) or causally follows the read. With ``exact=True`` the operations' ``replaces`` tell what was removed.
* CyclicCF. Winners are picked by the highest (hybrid timestamp, replica id) of those that nothing replaced, so this
  pair is the arbitration order: if read r has w1 in its past and shows w2, then w1 or its last replacer lost to w2.
  **That needs each write's timestamp to be higher than all that its replica had applied** (a hybrid clock that observes
  all it hears; ``check_survivors`` tests it). Without: v1 (10) is replaced by v2 (5), and v3 (7) is concurrent to both.
  Who saw v1 and v3 shows v1, so v3 < v1; who saw all shows v3, so v2 < v3; and v1 < v2 causally. A ring, and nobody
  erred. Deletes break it as well: a delete of w1 alone lets an older w2 show. So a pair is judged only where no
  delete or expiring write could have removed w1 before r, by the rule for absent reads. ``arbitration=False`` skips it.
* "lost" writes died with their replica and their clients were told (SPEC 2.8): neither they nor what they replaced are
  judged; as deletes they still excuse.
* Expiry is judged by each replica's wall clock (SPEC 2.5): seen, then gone, then seen again is no violation.

File format: JSON lines, one operation each, of a session in its order; sessions may be mixed. Fields: see
``Operation``; those at their default may be left out. Values are strings or whole numbers; ``null`` is "absent" in
reads and "deleted" in writes. A DELETE that answered 404 is a get that read null. Refused operations need not be
recorded. A client that starts without metadata is a new session.

    {"session":"ann","kind":"put","writes":[["photo","p1"]]}
    {"session":"ann","kind":"put","writes":[["album","a1"]]}
    {"session":"bob","kind":"list","reads":[["album","a1"],["photo",null]]}

is a FracturedRead's cousin, a WriteCOInitRead: Bob sees the album but not the photo that was there before it.
"""

from tools.history.checker import check
from tools.history.final_state import FINAL_SESSION, Survivor, check_convergence, check_durability, check_survivors
from tools.history.operations import HistoryError, Kind, Operation, Status, Value, describe, dump, load, named
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
    "check_survivors",
    "describe",
    "dump",
    "load",
    "named",
    "shrink",
]
