# disk.sh FILE MIB: writes random bytes to FILE, reads them back from the disk, and compares.
set -eu -o pipefail
file=$1 mib=$2
now() { date +%s%3N; }
start=$(now)
written=$(head -c "${mib}M" /dev/urandom | tee "$file" | sha256sum)
sync "$file"
wrote=$(now)
echo 3 >/proc/sys/vm/drop_caches
began=$(now)
read=$(sha256sum <"$file")
end=$(now)
[ "$written" = "$read" ] || {
    echo "wrote ${written%% *} and read ${read%% *}" >&2
    exit 1
}
echo "sha256=${written%% *} write_ms=$((wrote - start)) read_ms=$((end - began))"
