"""What ``manage.py demo`` does: load the Unicode database into a cluster, read it everywhere, crash a replica.

characters.py   what is written, in which order
load.py         who writes it, and who reads it meanwhile, hopping from replica to replica
report.py       times and counts, as texts for people
audit.py        a program of its own, which shares nothing with the others, and says whether all is there
"""
