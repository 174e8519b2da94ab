"""Hostile inputs: what strangers, clumsy clients and broken peers may send, sent to real replicas.

    python -m tools.hostile --inputs 2000      # make hostile INPUTS=2000

The inputs are random, and the seed repeats them. There are six kinds:

* malformed HTTP: wrong request lines, headers, lengths and chunks;
* requests to every route, with every method, and with bodies, queries and headers that are wrong or extreme;
* messages of replicas: valid ones whose bytes were changed, and well-formed ones with extreme or invented content;
* polls and streams of the change feed with forged or damaged tokens;
* connections that stall: in the headers, in the body, or with a response or event stream that nobody reads;
* bursts of connections that close at once.

The run is done twice: by anybody on an open cluster, and with and without credentials on a cluster with tokens and a
cluster secret.

What counts as success
    Every replica still runs, serves clients and answers its health check in time. The keys that were written before
    the inputs have the same values at every replica. A write at each replica reaches all of them. No response has a
    status of 500 or above, except the 503 and 507 of the contract. The memory of each process stays within
    ``MAX_GROWTH_BYTES`` of what it was.
"""
