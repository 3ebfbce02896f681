"""The benchmark: ours and the reference side by side, one table with bounds, JSON with machine and commit.

    make bench                                    everything, in some ten minutes
    python -m loadtests.bench --single            one node, no other server
    python -m loadtests.bench --quick fan-out     smaller, one case

Every process is measured from outside: CPU by `/proc/<pid>/stat`, memory by `/proc/<pid>/smaps_rollup`. The gateway is
`vestnik serve` on a fresh directory; the devices are lean sockets of this process; agencies sign by themselves.
"""
