#!/usr/bin/env bash
# A real Ray cluster on this machine, for tests: a head and two workers, each `ray start` of its own with one core.
#
#   bash scripts/reliability/ray_nodes.sh start DIR     # prints the address for --ray.address; DIR gets logs
#   bash scripts/reliability/ray_nodes.sh lose DIR      # one worker node is gone without a word (SIGKILL)
#   bash scripts/reliability/ray_nodes.sh stop DIR
#
# NODES=3 starts three workers; PORT=26379. The address is the machine's own, not 127.0.0.1: a builder joins the node of
# its own address.
set -euo pipefail
command=${1:?start, lose or stop} dir=$(realpath -m "${2:?folder}")
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-disabled} RAY_worker_niceness=${RAY_worker_niceness:-0}

node() {  # node NAME ARGUMENTS: its processes are a group of their own
  setsid ray start --block --num-cpus 1 --disable-usage-stats "${@:2}" >"$dir/$1.log" 2>&1 &
  echo $! >"$dir/$1.pid"
}

group() {  # group NAME SIGNAL, and wait until its processes are gone
  local pid
  pid=$(<"$dir/$1.pid")
  rm -f "$dir/$1.pid"
  kill "-$2" -- "-$pid" 2>/dev/null || return 0
  for _ in {1..50}; do pgrep -g "$pid" >/dev/null || return 0; sleep 0.2; done
  kill -KILL -- "-$pid" 2>/dev/null || true
}

up() {  # up ADDRESS COUNT: wait for so many nodes
  for _ in {1..40}; do
    [[ $(timeout 10 ray status --address "$1" 2>/dev/null | grep -c '^ 1 node_') == "$2" ]] && return
    sleep 0.5
    kill -0 "$(<"$dir/head.pid")" 2>/dev/null || break
  done
  echo "the nodes do not come up; see $dir/*.log" >&2
  stop
  exit 1
}

start() {
  mkdir -p "$dir"
  local address nodes=${NODES:-2}
  address=$(hostname -I | cut -d' ' -f1):${PORT:-26379}
  node head --head --port "${address##*:}" --node-ip-address "${address%:*}" --include-dashboard=false
  up "$address" 1
  for ((i = 1; i <= nodes; i++)); do node "worker$i" --address "$address" --node-ip-address "${address%:*}"; done
  up "$address" $((nodes + 1))
  echo "$address"
}

stop() {
  for pid in "$dir"/worker*.pid "$dir"/head.pid; do
    if [[ -e $pid ]]; then group "$(basename "$pid" .pid)" TERM; fi
  done
}

case $command in
  start) start ;;
  lose) group "$(basename "$(find "$dir" -name 'worker*.pid' | sort | head -1)" .pid)" KILL ;;
  stop) stop ;;
  *) echo "start, lose or stop" >&2; exit 2 ;;
esac
