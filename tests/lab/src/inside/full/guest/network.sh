# network.sh HOST PORT MIB: takes MIB from the host, then sends it as many, over one connection; says both checksums.
set -eu -o pipefail
host=$1 port=$2 mib=$3
exec 3<>"/dev/tcp/$host/$port"
received=$(head -c "${mib}M" <&3 | sha256sum)
file=$(mktemp -p /dev/shm)
trap 'rm "$file"' EXIT
head -c "${mib}M" /dev/urandom >"$file"
sent=$(sha256sum <"$file")
cat "$file" >&3
echo "received=${received%% *} sent=${sent%% *}"
