#!/usr/bin/env bash
# Train under DeepSpeed's launcher; stop and restart without losing a step.
#   bash launch/train.sh --recipe tiny --data.train SHARDS --output RUN        every GPU of this machine, or its cores
#   bash launch/train.sh --ranks 2 -- --recipe tiny … --output RUN             two of them
#   bash launch/train.sh --hostfile hostfile -- --recipe 120M … --output RUN   all machines of the file
# Before -- stand options of the deepspeed launcher and --ranks N (of each machine), behind it those of amplify_ds.train;
# without -- all are of amplify_ds.train.
#
# SIGTERM, SIGUSR1, SIGHUP or Ctrl-C asks all ranks on all machines to save a checkpoint at the next step and to stop;
# Ctrl-C or SIGTERM twice kills them at once. Exit codes:
#   0     complete: RUN/result.json
#   75    stopped on request and saved: RUN/stopped.json; the same command continues
#   70    a rank stopped responding and was named: RUN/stalled.json; the same command continues from the last checkpoint
#   else  failed, or killed by a second signal; the same command continues from the last checkpoint
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SAVED=75 STALLED=70
fail() { echo "error: $*" >&2; exit 2; }

# 1. The words: launcher's before --, training's behind it.
launcher_words=() words=("$@")
for ((i = 1; i <= $#; i++)); do
  if [ "${!i}" = -- ]; then launcher_words=("${@:1:i-1}") words=("${@:i+1}"); break; fi
done
run= supervised=1
for ((i = 0; i < ${#words[@]}; i++)); do
  case ${words[i]} in
    --output) run=${words[i + 1]:-} ;;
    --output=*) run=${words[i]#*=} ;;
    --dry-run) supervised= ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  esac
done
ranks= hostfile= port= rest=()
for ((i = 0; i < ${#launcher_words[@]}; i++)); do
  word=${launcher_words[i]} next=${launcher_words[i + 1]:-}
  case $word in
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --ranks) ranks=$next; ((++i)) ;;
    --hostfile | -H) hostfile=$next; ((++i)) ;;
    --hostfile=*) hostfile=${word#*=} ;;
    --master_port*) port=given; rest+=("$word") ;;
    *) rest+=("$word") ;;
  esac
done
[ -n "$run" ] || fail "--output RUN is missing; see bash launch/train.sh --help"
[[ $ranks =~ ^([1-9][0-9]*)?$ ]] || fail "--ranks needs a number of ranks, found '$ranks'"
# DeepSpeed would train on this machine alone, without a word.
[[ " ${launcher_words[*]-} " != *" --hostfile"* || -f $hostfile ]] || fail "--hostfile '$hostfile': there is no such file"

# 2. Signals. From here on a stop leaves with the code that restarts.
stopping= killed= asked=0 launcher=
ask() { # SIGNAL: stop and save; the second time (a warning of SLURM does not count) kill
  stopping=${stopping:-$1}
  case $1 in INT | TERM) asked=$((asked + 1)) ;; esac
  if [ -z "$launcher" ]; then echo "stopped before training had begun; the same command starts it" >&2; exit $SAVED; fi
  if ((asked > 1)); then
    killed=1
    end_all
  else
    echo "SIG$1: asking the ranks to save and stop" >&2
  fi
}
for name in INT TERM USR1 HUP; do trap "ask $name" "$name"; done
trap '' PIPE # a closed terminal or log must not cost the checkpoint

# 3. This machine: a rank a GPU; without one, a rank a core up to 8.
. launch/environment.sh
if [ -z "$ranks" ] && [ "$gpus" = 0 ]; then ranks=$((cores < 8 ? cores : 8)); fi
here=${ranks:-$gpus}
if [ -n "$hostfile" ]; then
  here=${ranks:-$(sed -n 's/^[^#]*slots=\([0-9]*\).*/\1/p' "$hostfile" | head -n 1)}
  rest+=(--hostfile "$hostfile")
elif [ -n "$ranks" ]; then
  rest+=(--num_accelerators "$ranks")
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / ${here:-1} > 0 ? cores / ${here:-1} : 1))}
if [ -z "$hostfile" ]; then
  if [ "$gpus" = 0 ]; then export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}; fi
  if [ -z "$port" ]; then
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    rest+=(--master_addr 127.0.0.1 --master_port "$port")
  fi
fi
command=(deepspeed --log_level critical "${rest[@]}" --no_local_rank --module amplify_ds.train "${words[@]}")
if [ -z "$supervised" ]; then exec "${command[@]}"; fi

# 4. Train, in a process group of its own: a signal to this script or its terminal does not reach the launcher, which
# would end at once.
mark() { stat -c '%i %y' "$run/$1" 2>/dev/null; }  # another file than before, even if it says the same
result=$(mark result.json) stopped=$(mark stopped.json) stalled=$(mark stalled.json)
export AMPLIFY_LAUNCHER_PID="${AMPLIFY_LAUNCHER_PID:-} $$"
# pdsh gives each ssh a session of its own, so the group is not all: what the launcher started is noted as it runs. When
# an ssh ends, so do the ranks at its other end (orphans.py).
below() { # PID: its children, and theirs
  local child
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do echo "$child"; below "$child"; done
}
ours() { # PIDs: those that still live and belong to this run, without the guard, which ends last
  local pid
  for pid in "$@"; do
    [ "$pid" != "${guard:-}" ] && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$run" && echo "$pid"
  done
}
end_all() {
  local pids
  pids=$(ours ${noted:-})
  kill -KILL $pids -- "-$launcher" 2>/dev/null
}
# A guard does the same when this script itself is killed.
guard() {
  local script=$1 guard=$BASHPID
  trap - INT TERM USR1 HUP
  while kill -0 "$launcher"; do
    noted=$(below "$launcher")
    kill -0 "$script" || end_all
    sleep 1
  done
}
noted=
export run
export -f below ours end_all guard
setsid bash -c 'launcher=$$ script=$1; shift; guard "$script" >/dev/null 2>&1 & exec "$@"' guarded $$ "${command[@]}" &
launcher=$!
standing=0
while kill -0 "$launcher" 2>/dev/null; do
  # Again and again: a rank that opens the run empties the file. Before that the directory may not exist.
  if [ -n "$stopping" ]; then { mkdir -p "$run" && echo "SIG$stopping" >"$run/.stop"; } 2>/dev/null; fi
  # A stopped process that is alone on its node keeps pdsh waiting: nobody there can end it.
  if [ "$(mark stalled.json)" != "$stalled" ] && ((++standing > 60)); then end_all; fi
  noted=$(below "$launcher")
  sleep 1 & # unlike a command in front, `wait` lets a signal be answered at once
  wait $!
done
wait "$launcher"
code=$?

# 5. Nothing is left running. When the launcher was signalled as well, its ranks may still be saving.
for ((i = 0; i < (${#stopping} ? 90 : 15); i++)); do
  kill -0 -- "-$launcher" 2>/dev/null || [ -n "$(ours $noted)" ] || break
  sleep 1
done
end_all

if [ -n "$stopping" ] && [ -e "$run/.stop" ]; then : >"$run/.stop"; fi

# 6. What the run wrote decides; the launcher's code is 0 when it was killed.
ls -a "$run" >/dev/null 2>&1 # NFS: see the newest names
new() { local now; now=$(mark "$1") && [ "$now" != "$2" ]; }
if new result.json "$result"; then exit 0; fi
if new stopped.json "$stopped"; then exit $SAVED; fi
if new stalled.json "$stalled"; then exit $STALLED; fi
if [ -n "$killed" ]; then
  echo "killed by the second signal; the same command continues from the newest checkpoint in $run" >&2
  exit 143
fi
echo "error: training ended before its last step (launcher's code $code); the same command continues it" >&2
exit $((code ? code : 1))
