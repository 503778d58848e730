#!/usr/bin/env bash
# One node of Ceph (monitor, manager, in-memory object store) with its S3 gateway on loopback, for tests. Needs root and
# the Debian packages radosgw ceph-mon ceph-mgr ceph-osd ceph-common.
#   ceph_s3.sh up DIR PORT     user testkey / testsecret12
#   ceph_s3.sh down DIR
set -euo pipefail
verb=$1 dir=$2
if [ "$verb" = down ]; then
  for pid in "$dir"/run/*.pid; do [ -e "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true; done
  exit 0
fi
port=$3
mkdir -p "$dir" && cd "$dir" && dir=$PWD
mkdir -p mon mgr osd run log
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
v2=$(free) v1=$(free)
cat > ceph.conf <<C
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$v2,v1:127.0.0.1:$v1]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = true
keyring = $dir/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 2147483648
mon warn on pool no redundancy = false
mon max pg per osd = 1000
mon data avail crit = 1
run dir = $dir/run
log file = $dir/log/\$name.log
admin socket = $dir/run/\$name.asok
pid file = $dir/run/\$name.pid
mon data = $dir/mon
osd data = $dir/osd
mgr data = $dir/mgr
rgw frontends = beast endpoint=127.0.0.1:$port
rgw dynamic resharding = false
C
fsid=$(sed -n 's/^fsid = //p' ceph.conf)
conf=(-c "$dir/ceph.conf")
key() { ceph-authtool keyring --gen-key -n "$@" > /dev/null; }
ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *' > /dev/null
key client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
key mgr.a --cap mon 'allow profile mgr' --cap osd 'allow *'
key osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
key client.rgw.a --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
monmaptool --create --addv a "[v2:127.0.0.1:$v2,v1:127.0.0.1:$v1]" --fsid "$fsid" --clobber monmap > /dev/null
ceph-mon "${conf[@]}" -i a --mkfs --monmap monmap --keyring keyring 2> /dev/null
ceph-mon "${conf[@]}" -i a
for _ in $(seq 30); do timeout 5 ceph "${conf[@]}" -s > /dev/null 2>&1 && break; sleep 1; done
ceph-mgr "${conf[@]}" -i a
ceph "${conf[@]}" osd new "$(tee osd-uuid < /proc/sys/kernel/random/uuid)" > /dev/null
ceph "${conf[@]}" auth import -i keyring > /dev/null 2>&1
ceph-osd "${conf[@]}" -i 0 --mkfs --osd-uuid "$(cat osd-uuid)" > /dev/null 2>&1
ceph-osd "${conf[@]}" -i 0 > /dev/null 2>&1
ceph "${conf[@]}" osd crush add osd.0 1.0 host=h root=default > /dev/null 2>&1 || true
timeout 120 radosgw "${conf[@]}" -n client.rgw.a -k "$dir/keyring"
for _ in $(seq 60); do (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null && break; sleep 1; done
timeout 60 radosgw-admin "${conf[@]}" user create --uid=test --display-name=test \
  --access-key=testkey --secret-key=testsecret12 > /dev/null 2>&1
