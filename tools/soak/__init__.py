"""Soak test: real replicas, many clients and random faults at the same time, for as long as you like.

    python -m tools.soak --minutes 10          # make soak MINUTES=10
    python -m tools.soak --check DIRECTORY     # check the records of an earlier run again

A run consists of *rounds*. In each round, clients use the keys of the round while faults of links, processes and clocks
begin and end, several of them at a time. Then every fault ends. Within ``CONVERGE_LIMIT_S`` all replicas must have
converged, and each replica must serve the session of each client. ``tools.history`` then checks the recorded history
and the final state. Replicas keep running from round to round, with the clocks and logs that the faults left them.

    Beside them, *followers* keep copies of prefixes by the change feed, by polls and by server-sent events, at one
    replica after another (``followers.py``). The checks cover their records: at every moment a copy is a causal
    snapshot, it never goes backwards, and at the end it equals the final state.

Faults
    *Links*: partitions, cuts of one direction or of requests only, a ring, and packet loss. *Processes*: a replica is
    killed, paused, asked to stop, or removed from the view, and comes back. *Clocks*: steps of up to ten minutes.
    *Addresses*: a *guest* is a replica that starts under a new address, joins, serves clients and leaves for good:
    drained, killed, or removed first. *Ghosts* are addresses that are added although nobody answers there, and removed
    again. *Storms* write two megabytes per second at one replica while another one starts without data. The logs keep
    only ``storm.LOG_BYTES``, so replicas need snapshots. Each round begins with one fault of each kind, in random
    order.

What must be flat
    The largest memory of each replica at the end of a round, in the last third of the run as in the first one, plus
    what the data grew (only in runs of at least ``growth.MIN_ROUNDS`` rounds). One replica, which the seed chooses, is
    never killed or asked to stop, because a leak shows only in an old process. The tables: at most 256 removed
    addresses, once old removals had time to be forgotten. The metadata of clients: at most two entries per member at
    the end of each round. Clocks of replicas are reported only: they grow by one entry per process that wrote.

What may be lost
    An update that only a killed replica had is lost (docs/contract.md, P5), and replicas report the loss to clients
    (section 2.8). The history checker has to know the lost updates. They are those that no replica's clock covers at
    the end, and those that a replica reported as lost. (The second kind may still exist: a replica that was cut off and
    removed brings its updates back when it is added again.) So that this excuses no bug, each of these updates must
    fulfil three conditions:

    * It could not have reached every replica. Either its replica was killed less than ``SPREAD_S`` after the response;
      or, at some time until the kill, some replica was unreachable or a storm wrote. Or its replica was asked to stop,
      and a replica that may have received its updates was killed while another one was unreachable or a storm wrote.
    * Every replica that returned it to a client was killed or stopped later.
    * If it was reported as lost, its replica was killed or removed before.

What counts as success
    *Per request.* The share of requests to *serving* replicas that were answered without an error. A replica serves
    while it is running, not paused, in the view, and ready; all of this from before the request until after the
    response. (A replica that is joining or removed must reject every client.) Every status except 200, 201, 202, 304,
    404 and 412 is an error, and so is a missing response. There is one exception. A 503 that names missing
    dependencies is *excused* if the replica could not have had them. The soak makes the faults and asks the replicas
    for their clocks, so it can tell (``reachability.py``):

    * Every replica that had the dependency was killed. It is lost, and replicas report that only after they have asked
      every member (section 2.8).
    * The replica was cut off: no path from a replica that has the dependency stayed connected while the request waited.
      A path may lead through other replicas, but not through one that is stopped or paused.
    * The replica was cut off until just before: such a path was connected for less than ``KV_DOWN_AFTER``.
    * Packets were lost on all paths. TCP repeats them after seconds.
    * All paths lead through other replicas. Each of them passes updates on after ``KV_SYNC_INTERVAL``, and the request
      waited for a shorter time.

    All other rejections are errors. A request is not counted if the client gave up, at the deadline of its call, while
    the replica could still wait for the dependencies.

    *Per call.* The share of client calls that succeeded before their deadline (``CALL_TIMEOUT_S``), at any replica: a
    session that meets a 503 or a silent replica tries the next one. A failed call is excused if each of its attempts
    was excused or went to a replica that was not serving.

    Requests of storms, of event streams and to guests are in the history, but do not count here.

    A run passes if no violation was found, all is flat, at least 99 % of the requests succeeded, and of the calls (both
    without excused ones), and if clients completed at least 100 operations per second in every period of ``WINDOW_S``.
"""
