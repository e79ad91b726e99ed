# Sourced by launch/pretrain_*.sh: prints their help, and separates options of launch/train.sh and amplify_ds.train.
#   sets: launcher; data (the published sources, unless --data.train is given); "$@" (options of amplify_ds.train)
launcher=() data=()
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --) launcher=("${@:1:i-1}"); shift "$i"; i=0 ;;
    --data.train | --data.train=*) given=1 ;;
  esac
done
while :; do
  case ${1:-} in
    --preflight | --slurm) launcher+=("$1"); shift ;;
    --hostfile | --ranks | --restarts) if (($# < 2)); then break; fi; launcher+=("$1" "$2"); shift 2 ;;
    *) break ;;
  esac
done
# Weights of the sources: conf/dataset/uniref100+.yaml of chandar-lab/AMPLIFY.
if [ -z "${given:-}" ]; then
  data=(--data.train uniprot=shards/train/uniprot:15134 scop=shards/train/scop:136 oas=shards/train/oas:1
    --data.validation uniprot=shards/validation/uniprot scop=shards/validation/scop oas=shards/validation/oas)
fi
