#!/usr/bin/env bash
# A Slurm cluster of two nodes, n1 and n2, on this host, for the tests with the marker `slurm`:
#
#   bash scripts/slurm_test_cluster.sh up        # install what is missing (Debian, as root) and start it
#   bash scripts/slurm_test_cluster.sh status    # its SLURM_CONF, or why there is none
#   bash scripts/slurm_test_cluster.sh down      # end its jobs and daemons, remove its folder
#
# To use it by hand: export SLURM_CONF=$(bash scripts/slurm_test_cluster.sh status), then sinfo, sbatch, squeue.
#
# `up` twice does no harm: it starts what is not running and puts nodes that went down back to work. All state, the
# configuration and a munge daemon of its own lie in one folder (SLURM_TEST_DIR, default /tmp/slurm-test-cluster);
# /etc/slurm and a munge daemon of the system are left alone. It listens on the ports 17000 to 17002.
#
# Partitions: `debug` (the default), and `urgent`, whose jobs pre-empt those of `debug`: SIGCONT and SIGTERM, then the
# queue again after 20 seconds.
#
# Exit codes: 0 done; 1 it did not come up (the end of the logs follows); 2 wrong use; 3 this machine cannot run it.
set -euo pipefail

folder=${SLURM_TEST_DIR:-/tmp/slurm-test-cluster}
conf=$folder/slurm.conf
nodes=(n1 n2)
# Daemons may live in folders that are not on a user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export SLURM_CONF=$conf

cannot_run() {
    printf 'no Slurm here: %s\n' "$*" >&2
    exit 3
}

# alive PID: whether that process runs; a dead one may linger as a zombie.
alive() {
    [[ -r /proc/$1/status ]] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status"
}

dead() {
    ! alive "$1"
}

# running NAME: whether the daemon whose process id is in NAME.pid runs.
running() {
    [[ -s $folder/$1.pid ]] && alive "$(<"$folder/$1.pid")"
}

# stop NAME: end that daemon, and wait for its process: it removes the file before its last words.
stop() {
    local pid
    running "$1" || return 0
    pid=$(<"$folder/$1.pid")
    kill "$pid" 2>/dev/null || return 0
    until_true 10 dead "$pid" || kill -9 "$pid" 2>/dev/null || true
}

# until_true SECONDS COMMAND...: try COMMAND until it succeeds.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

install_packages() {
    local program missing=()
    for program in slurmctld slurmd sbatch munged; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || cannot_run "${missing[*]} not installed, and no apt-get to install slurm-wlm and munge"
    echo "installing slurm-wlm and munge"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        slurm-wlm munge; } >"$folder/log/apt.log" 2>&1 ||
        cannot_run "apt-get could not install slurm-wlm and munge: $(tail -n 1 "$folder/log/apt.log")"
}

write_conf() {
    local memory
    # Half of the host for each node, so that no job is promised what is not there.
    memory=$(awk '/^MemTotal/ { print int($2 / 2048) }' /proc/meminfo)
    cat >"$conf" <<CONF
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort=17000
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
# Without control groups, which containers seldom may use.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerNode=1000
# Two nodes of two CPUs, whatever the host has.
SlurmdParameters=config_overrides
SlurmdTimeout=60
KillWait=15
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2 RealMemory=$memory
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=10 DefaultTime=2 PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n[1-2] MaxTime=10 DefaultTime=2 PriorityTier=10 PreemptMode=OFF
CONF
}

start_munge() {
    running munged && return
    [[ -f $folder/munge.key ]] || { head -c 128 /dev/urandom >"$folder/munge.key" && chmod 400 "$folder/munge.key"; }
    # --force: the folder lies under a world-writable one.
    munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --seed-file="$folder/munge.seed" \
        --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" 2>>"$folder/log/start.log"
    until_true 10 munge -S "$folder/munge.socket" -n
}

start_slurm() {
    local node state
    running slurmctld || slurmctld -f "$conf" 2>>"$folder/log/start.log"
    until_true 20 scontrol ping
    for node in "${nodes[@]}"; do
        running "$node" || slurmd -f "$conf" -N "$node" 2>>"$folder/log/start.log"
    done
    for node in "${nodes[@]}"; do
        state=$(sinfo -h -N -n "$node" -o %T | head -n 1)
        # A node that was set down by hand does not return by itself.
        [[ $state != down* && $state != drain* ]] || scontrol update NodeName="$node" State=RESUME || true
    done
    until_true 30 nodes_are_ready
}

nodes_are_ready() {
    [[ $(sinfo -h -N -p debug -o %T | grep -cxE 'idle|mixed|allocated|completing') == "${#nodes[@]}" ]]
}

up() {
    [[ $(uname) == Linux ]] || cannot_run "the test cluster is made for Linux, this is $(uname)"
    [[ $EUID == 0 ]] || cannot_run "needs root, to install packages and to run the daemons"
    mkdir -p "$folder"/{log,state}
    install_packages
    [[ -f $conf ]] || write_conf
    if ! start_munge || ! start_slurm; then
        echo "error: the test cluster did not come up; the ends of its logs:" >&2
        tail -n 5 "$folder"/log/*.log >&2
        exit 1
    fi
    status
}

status() {
    [[ -f $conf ]] || cannot_run "the test cluster is not running; start it with: bash scripts/slurm_test_cluster.sh up"
    command -v sinfo >/dev/null || cannot_run "Slurm is not installed"
    nodes_are_ready || cannot_run "the nodes of the test cluster are not ready: $(sinfo -h -N -p debug -o '%N %T' 2>&1 |
        tr '\n' ' '); run: bash scripts/slurm_test_cluster.sh up"
    printf '%s\n' "$conf"
}

down() {
    local daemon
    [[ -d $folder ]] || return 0
    if running slurmctld; then
        scancel --full --partition=debug 2>/dev/null || true
        scancel --full --partition=urgent 2>/dev/null || true
        until_true 20 no_jobs || echo "warning: jobs were left running" >&2
    fi
    for daemon in "${nodes[@]}" slurmctld munged; do
        stop "$daemon"
    done
    until_true 10 rm -rf "$folder" || rm -rf "$folder"
}

no_jobs() {
    [[ -z $(squeue -h) ]]
}

case ${1:-} in
up | down | status) "$1" ;;
-h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" ;;
*)
    echo "usage: bash scripts/slurm_test_cluster.sh up|down|status" >&2
    exit 2
    ;;
esac
