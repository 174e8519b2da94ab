"""The benchmark: ``manage.py benchmark`` measures Causeway beside baselines and other stores, in one run.

systems.py         what is measured: clusters of Causeway, baselines, etcd, Redis
loads.py           the HTTP requests that are sent, prepared before the measurement
drivers.py         what sends them: wrk, or processes of load_generator.py
throughput.py      requests per second and their CPU time; the ablation (causality removed)
lag.py, latency.py, recovery.py, costs.py, simulated.py    one module for each other kind of figure
sections.py        the sections of a run, in order
figures.py         one figure: measurements, median, target
charts.py, report.py       what a run writes: SVG charts, JSON, the results in docs/benchmarks/README.md
overview_cost.py   a separate program: what an open dashboard costs a replica

docs/benchmarks/README.md explains how the figures are measured and what each one means.
"""
