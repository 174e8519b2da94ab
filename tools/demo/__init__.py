"""The demo (``manage.py demo``): load the Unicode character database into a cluster, read it, kill a replica.

characters.py   the records, and the order in which they are written
load.py         the clients: one writer, and readers that check causality while they change replicas
run.py          one run: the clients, the killed replica, and the audit
report.py       durations and sizes as text
audit.py        an independent program that checks that every replica has all records
"""
