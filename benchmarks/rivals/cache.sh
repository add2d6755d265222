#!/bin/sh
# A pull-through cache on the first node (CNCF distribution), as a rival for the
# benchmark: what many clusters have between their nodes and a registry.
#
#	go run ./benchmarks/pull -mode perfect,shoal,other -other-name pull-through-cache \
#		-other-command "$PWD/benchmarks/rivals/cache.sh {{.Index}} {{.Dir}} {{.RegistryURL}}" \
#		-other-hosts benchmarks/rivals/cache.hosts.toml -other-ready 'http://{{.First}}:5001/v2/'
#
# REGISTRY names the program; `docker-registry` of Debian and Ubuntu is one.
set -eu
[ "$1" = 0 ] || exec sleep infinity
cat >"$2/config.yml" <<EOF
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: "$2/data"}
http: {addr: ":5001"}
proxy: {remoteurl: "$3"}
EOF
exec "${REGISTRY:-docker-registry}" serve "$2/config.yml"
