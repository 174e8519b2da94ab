"""Everything at once: hopping clients, and random faults of the network, the machines and the clocks, then a verdict.

    python -m tools.soak --minutes 10          # make soak MINUTES=10
    python -m tools.soak --judge DIRECTORY     # judge the records of a run again

A run is made of *rounds*. In each, clients work on keys of the round while faults come and go, several at the same
time; then everything heals, and within ``STEP_LIMIT_S`` all replicas must be equal and every client's session must be
served everywhere. The recorded history, and the final state as a read by somebody who follows everybody, go to
``tools.history``. Replicas live on from round to round, with what the faults made of their clocks and logs.

What may be lost. An update that only a killed replica had is gone (SPEC P5), and clients are told (2.8). So the judge
has to know which were: those that no replica's clock covers in the end, and those that a client was told are lost (one
of a replica that was cut off and removed may come back when that is put back). Lest that excuses a bug, each of them
must be one that could have been lost:

* its replica was killed less than ``SPREAD_S`` after the answer, or later and not everybody could be reached until
  then; or it was asked to end, and one that it may have handed everything over to was killed before everybody could
  be reached;
* nobody read it from a replica that has lived ever since;
* one that a client was told of: its replica was killed or removed before.

Success is told twice.

*At the replica.* Of the single requests to *serving* replicas, how many were answered without an error? A replica
serves while its process runs and is not paused, it is in the view, and it has said that it is ready (a joining one,
or one that was removed, refuses everybody, as it must): all that from before the request until after its answer.
Every status but 200, 201, 202, 304, 404 and 412 is an error, and so is no answer; with one exception. A 503 that
names what of the client's causal past is missing is *excused* where the replica could not have had it, whatever it
did. The soak makes the faults, and asks the replicas what they have, so it can say (``reach.py``):

* all who had it were killed since: it is lost, and told so once everybody has been asked, down members too (SPEC 2.8);
* cut off: no way to one that has it stayed whole while the request waited, be it over others; replicas that are down or
  paused pass nothing on;
* just healed: a way was whole, but for less than ``KV_DOWN_AFTER`` before the request (SPEC 3);
* packets were lost on all ways: TCP sends again after seconds;
* only over others: updates of a third replica are passed on after ``KV_SYNC_INTERVAL`` (DESIGN 4), and the request
  waited for less than that for each replica in between.

All other refusals are errors. Requests that the client gave up, as the time of its call was over while the replica
could still wait for the past, are neither.

*In the user's eyes.* Of the clients' calls, how many were answered before their deadline (``CALL_TIMEOUT_S``),
whatever it took: a session that meets a 503 or a silent replica goes to the next one. Those that were not are told
apart: excused, where each attempt was (one at a replica in trouble is), or not.

The verdict asks that at least 99% of the requests at serving replicas were answered, errors as above; that the same
share of calls was answered, excused ones left out; and for at least 100 operations a second in any ``WINDOW_S``.
"""
