"""Reading how Slurm writes nodes and counts of tasks, and where it reaches a node."""

import re
import socket
import subprocess


def first_host(nodes: str) -> str:
    """Return the first host of a node list: `gpu[07-09,12],cpu1` gives `gpu07`.

    Raises:
        ValueError: the list cannot be read.
    """
    # Letters, then brackets with ranges, possibly several times over (`rack[1-2]node[3,5]`), up to the next comma.
    match = re.match(r"(?:[^\[\],]+|\[[0-9,-]+\])+", nodes)
    host = re.sub(r"\[(\d+)[0-9,-]*\]", r"\1", match[0]) if match else ""
    if not host or "[" in host:
        raise ValueError(f"the node list {nodes!r} of this step cannot be read, expected one such as n[1-3],m7")
    return host


def tasks_on_node(counts: str, node: int) -> int:
    """Return how many tasks run on the node with number `node`; `2(x3),1` means two on each of three nodes, one on one.

    Raises:
        ValueError: the counts cannot be read, or there is no such node.
    """
    tasks: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE = {counts!r}: expected counts such as 2(x3),1")
        tasks += [int(match[1])] * int(match[2] or 1)
    if node >= len(tasks):
        raise ValueError(f"SLURM_NODEID = {node}: SLURM_STEP_TASKS_PER_NODE = {counts!r} is of {len(tasks)} nodes")
    return tasks[node]


def reachable_name(node: str) -> str:
    """Return `node` if that name resolves, else the address under which Slurm reaches the node, else `node`.

    A node's name in Slurm need not be a host's name: in clouds, or with several nodes on one host.
    """
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        command = ["scontrol", "show", "node", node, "--oneliner"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return node
    match = re.search(r"\bNodeAddr=(\S+)", shown)
    return match[1] if match else node
