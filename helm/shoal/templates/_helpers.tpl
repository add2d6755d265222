{{- define "shoal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Names get suffixes of up to 12 characters. */}}
{{- define "shoal.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "shoal.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "shoal.selector" -}}
app.kubernetes.io/name: {{ include "shoal.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "shoal.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "shoal.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "shoal.image" -}}
{{- $i := .Values.image -}}
{{- if $i.digest -}}
{{- printf "%s@%s" $i.repository $i.digest -}}
{{- else -}}
{{- printf "%s:%s" $i.repository (default .Chart.AppVersion $i.tag) -}}
{{- end -}}
{{- end -}}

{{- define "shoal.cluster" -}}
{{- default (printf "%s-%s" .Release.Namespace (include "shoal.fullname" .)) .Values.cluster -}}
{{- end -}}

{{/*
What the distributions have where; docs/distributions says why. Explicit values
count first.
*/}}
{{- define "shoal.node" -}}
{{- $socket := "/run/containerd/containerd.sock" -}}
{{- $root := "/var/lib/containerd" -}}
{{- $hosts := "/etc/containerd/certs.d" -}}
{{- $watch := false -}}
{{- $quota := false -}}
{{- $d := .Values.distribution -}}
{{- if or (eq $d "k3s") (eq $d "rke2") -}}
  {{- $socket = "/run/k3s/containerd/containerd.sock" -}}
  {{- $root = printf "/var/lib/rancher/%s/agent/containerd" $d -}}
  {{- $hosts = printf "/var/lib/rancher/%s/agent/etc/containerd/certs.d" $d -}}
  {{- $watch = true -}}
{{- else if eq $d "k0s" -}}
  {{- $socket = "/run/k0s/containerd.sock" -}}
  {{- $root = "/var/lib/k0s/containerd" -}}
  {{- $hosts = "/etc/k0s/containerd.d/certs.d" -}}
{{- else if eq $d "talos" -}}
  {{- $hosts = "/etc/cri/conf.d/hosts" -}}
  {{- $watch = true -}}
{{- else if eq $d "gke" -}}
  {{- $hosts = "/etc/containerd/hosts.d" -}}
  {{- $quota = true -}}
{{- end -}}
{{- if kindIs "bool" .Values.configure.watch }}{{ $watch = .Values.configure.watch }}{{ end -}}
{{- if kindIs "bool" .Values.priorityQuota }}{{ $quota = .Values.priorityQuota }}{{ end -}}
{{- $hosts = clean (default $hosts .Values.containerd.hostsDir) -}}
{{- $data := clean .Values.data.dir -}}
{{- range $setting, $path := dict "containerd.hostsDir" $hosts "data.dir" $data -}}
  {{- if has (dir $path) (list "/" ".") -}}
    {{- fail (printf "%s: %s: its parent directory gets mounted, and cannot be the root of the node" $setting $path) -}}
  {{- end -}}
{{- end -}}
{{- $socket = clean (default $socket .Values.containerd.socket) -}}
{{- $content := clean (default (printf "%s/io.containerd.content.v1.content" $root) .Values.containerd.contentDir) -}}
{{- if or (has $data (list (dir $socket) $content $hosts (dir $hosts))) (eq (dir $data) (dir $hosts)) -}}
  {{- fail (printf "data.dir: %s: is mounted for something else; the data needs a directory of its own" $data) -}}
{{- end -}}
{{- $taken := dict -}}
{{- range $name := list "mirror" "control" "wire" "gossip" "metrics" -}}
  {{- $port := toString (get $.Values.ports $name) -}}
  {{- if hasKey $taken $port -}}
    {{- fail (printf "ports: %s and %s are both %s" (get $taken $port) $name $port) -}}
  {{- end -}}
  {{- $_ := set $taken $port $name -}}
{{- end -}}
{{- dict
  "socket" $socket
  "content" $content
  "hosts" $hosts
  "data" $data
  "watch" $watch
  "quota" $quota | toYaml -}}
{{- end -}}

{{/* The file that `shoal serve --config` reads. */}}
{{- define "shoal.config" -}}
{{- $node := include "shoal.node" . | fromYaml -}}
{{- $p := .Values.ports -}}
{{- $c := dict
  "cluster" (include "shoal.cluster" .)
  "data-dir" $node.data
  "cache-size" .Values.data.cacheSize
  "containerd-socket" $node.socket
  "containerd-root" $node.content
  "mirror-addr" (printf "%s:%v" (ternary "127.0.0.1" "" .Values.hostNetwork) $p.mirror)
  "control-addr" (printf ":%v" $p.control)
  "wire-addr" (printf ":%v" $p.wire)
  "gossip-addr" (printf ":%v" $p.gossip)
  "metrics-addr" (printf ":%v" $p.metrics)
  "join" (list (printf "%s.%s.svc:%v" (include "shoal.fullname" .) .Release.Namespace $p.gossip))
  "drain" (printf "%vs" .Values.drainSeconds)
-}}
{{- if eq .Values.tls.mode "insecure" -}}
  {{- $_ := set $c "insecure-peers" true -}}
{{- else -}}
  {{- $_ := set $c "certs-dir" "/etc/shoal/certs" -}}
{{- end -}}
{{- with .Values.registries }}{{ $_ := set $c "registry" . }}{{ end -}}
{{- with .Values.authorization }}{{ $_ := set $c "authorization" . }}{{ end -}}
{{- if .Values.credentials.secretName -}}
  {{- $used := false -}}
  {{- range .Values.authorization }}{{ if ne . "upstream" }}{{ $used = true }}{{ end }}{{ end -}}
  {{- if not $used -}}
    {{- fail "credentials.secretName: of no use: no registry has authorization node, which lets every pod pull with these credentials" -}}
  {{- end -}}
  {{- $_ := set $c "docker-config" "/etc/shoal/docker/config.json" -}}
{{- end -}}
{{- if .Values.customCAs -}}
  {{- $cas := dict -}}
  {{- range $i, $ca := .Values.customCAs -}}
    {{- if not (or $ca.secret $ca.configMap) -}}
      {{- fail (printf "customCAs: %s: name a secret or a configMap" $ca.registry) -}}
    {{- end -}}
    {{- $_ := set $cas $ca.registry (printf "/etc/shoal/ca/%d.crt" $i) -}}
  {{- end -}}
  {{- $_ := set $c "registry-ca" $cas -}}
{{- end -}}
{{- range $key, $value := .Values.config -}}
  {{- if or (hasKey $c $key) (has $key (list "certs-dir" "insecure-peers" "registry" "authorization" "docker-config" "registry-ca" "node" "advertise-addr" "config")) -}}
    {{- fail (printf "config.%s: the chart sets this from its own values, see its README" $key) -}}
  {{- end -}}
  {{- $_ := set $c $key $value -}}
{{- end -}}
{{- toYaml $c -}}
{{- end -}}

{{/* 90 % of a memory quantity in bytes: the rest is for what the Go runtime does not count. */}}
{{- define "shoal.gomemlimit" -}}
{{- $q := toString . -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $q -}}
{{- $unit := trimPrefix $number $q -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- if or (eq $number "") (not (hasKey $units $unit)) -}}
  {{- fail (printf "resources.limits.memory: %s: want a number with k, M, G, T, Ki, Mi, Gi or Ti" $q) -}}
{{- end -}}
{{- mulf (float64 $number) (get $units $unit) 0.9 | floor | int64 -}}
{{- end -}}

{{/*
The secret with the certificate, and the one with gossip.key. Those of cert-manager
are not Helm's: cert-manager leaves them behind, and a release may go back to mode helm.
*/}}
{{- define "shoal.tlsSecret" -}}
{{- if eq .Values.tls.mode "secret" -}}
{{- required "tls.secretName: required with tls.mode secret: a secret with ca.crt, tls.crt, tls.key and gossip.key" .Values.tls.secretName -}}
{{- else if eq .Values.tls.mode "certManager" -}}
{{- include "shoal.fullname" . }}-issued-tls
{{- else -}}
{{- include "shoal.fullname" . }}-tls
{{- end -}}
{{- end -}}
{{- define "shoal.gossipSecret" -}}
{{- if .Values.tls.gossipSecretName -}}
{{- .Values.tls.gossipSecretName -}}
{{- else if eq .Values.tls.mode "certManager" -}}
{{- include "shoal.fullname" . }}-gossip
{{- else -}}
{{- include "shoal.tlsSecret" . -}}
{{- end -}}
{{- end -}}

{{/* Arguments that configure and unconfigure share. */}}
{{- define "shoal.configureArgs" -}}
{{- $node := include "shoal.node" . | fromYaml -}}
- configure
- {{ printf "--hosts-dir=%s" $node.hosts | quote }}
- --mirror=http://127.0.0.1:{{ .Values.ports.mirror }}
{{- range .Values.configure.registries }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* What all pods that work on a node have in common. */}}
{{- define "shoal.podSpec" -}}
automountServiceAccountToken: false
# Variables of services would look like settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
