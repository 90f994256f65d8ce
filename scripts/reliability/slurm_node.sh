#!/usr/bin/env bash
# A real Slurm of one node on this machine, on loopback, for tests: munged, slurmctld and slurmd of Debian's slurm-wlm.
#
#   sudo apt-get install slurm-wlm munge
#   bash scripts/reliability/slurm_node.sh start DIR     # as root; DIR gets configuration, keys, state and logs
#   export SLURM_CONF=DIR/slurm.conf                     # then sinfo, sbatch, squeue ... use it
#   bash scripts/reliability/slurm_node.sh stop DIR
#
# No accounting (no sacct), no cgroups: processes are tracked by their parents, memory and cores are not enforced.
# CPUS=4 makes the node pretend to have so many; default: what the machine has.
set -euo pipefail
command=${1:?start or stop} dir=$(realpath -m "${2:?folder}")

stop() {
  for name in slurmd slurmctld munged; do
    [[ -s $dir/$name.pid ]] || continue
    pid=$(<"$dir/$name.pid")
    kill "$pid" 2>/dev/null || true
    for _ in {1..50}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$dir/$name.pid"
  done
}

start() {
  mkdir -p "$dir"/{state,spool,munge}
  chmod 755 "$dir" && chmod 700 "$dir/munge"
  head -c 128 /dev/urandom >"$dir/munge/key" && chmod 400 "$dir/munge/key"
  local host cpus
  host=$(hostname -s) cpus=${CPUS:-$(nproc)}
  cat >"$dir/slurm.conf" <<EOF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
MinJobAge=300
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
EOF
  munged --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" --force
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -c
  slurmd
  for _ in {1..100}; do
    [[ $(sinfo -h -o %T 2>/dev/null | sort -u) == idle ]] && { sinfo; return; }
    sleep 0.3
  done
  echo "the node does not come up; see $dir/slurmctld.log and $dir/slurmd.log" >&2
  stop
  exit 1
}

case $command in
  start) start ;;
  stop) stop ;;
  *) echo "start or stop" >&2; exit 2 ;;
esac
