# io.sh WHAT FILE DATA HOST PORT MIB: makes one transfer of MIB and says how many nanoseconds it took. `prepare` makes FILE, on the
# disk, and DATA, in memory, and says nothing; `bounced` says the most slots of its swiotlb that the guest has used at a time.
set -eu -o pipefail
what=$1 file=$2 data=$3 host=$4 port=$5 mib=$6
prepare() {
    head -c "${mib}M" /dev/urandom >"$data"
    disk_write
}
bounced() { cat /sys/kernel/debug/swiotlb/io_tlb_used_hiwater 2>/dev/null || echo 0; }
disk_write() { dd if="$data" of="$file" bs=1M oflag=direct conv=notrunc,fsync status=none; }
disk_read() { dd if="$file" of=/dev/null bs=1M iflag=direct status=none; }
# The host does what the first byte asks for.
network_in() {
    printf i >&3
    head -c "${mib}M" <&3 >/dev/null
}
network_out() {
    printf o >&3
    cat "$data" >&3
    head -c 1 <&3 >/dev/null # it has all arrived
}
case $what in
prepare | bounced)
    $what
    exit
    ;;
network_*) exec 3<>"/dev/tcp/$host/$port" ;;
esac
start=$(date +%s%N)
$what
echo $(($(date +%s%N) - start))
