{{/*
Each template reads a manifest of the directory manifests, changes what the values change, and
prints it. The files there are copies of those in deploy/base and deploy/overlays.
*/}}

{{/* The image: repository:tag, or repository@digest. */}}
{{- define "relay.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Not empty if the Service kube-audit-forwarder has the two ports of version 0.1.0. With service.ports
empty, a Service that is in the cluster keeps its number of ports: the webhook's URL may name them.
*/}}
{{- define "relay.twoPorts" -}}
{{- $ports := .Values.service.ports -}}
{{- if not $ports -}}
{{- $found := lookup "v1" "Service" .Release.Namespace "kube-audit-forwarder" | default dict -}}
{{- $ports = ternary "two" "one" (gt (len (dig "spec" "ports" list $found)) 1) -}}
{{- end -}}
{{- if eq $ports "two" -}}true{{- end -}}
{{- end -}}

{{/* The bytes of a quantity of Kubernetes (10Gi) or a size of the config (8GiB). */}}
{{- define "relay.bytes" -}}
{{- $units := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- mulf (float64 $number) (get $units (. | trimPrefix $number | trimSuffix "B")) | int64 -}}
{{- end -}}

{{/*
The size of the volume and queue.max_bytes, as JSON with the keys size and maxBytes. A text is empty
if the manifest's value holds. Of one that is given, the other is made: the queue takes 80 % of a
persistent volume and 75 % of an emptyDir, as in the manifests. The rest is for dead letters,
evidence and the file system itself. Fails if the queue does not fit.
*/}}
{{- define "relay.room" -}}
{{- $durable := .Values.durable.enabled -}}
{{- $key := ternary "durable.size" "queue.emptyDirSize" $durable -}}
{{- $size := ternary .Values.durable.size .Values.queue.emptyDirSize $durable -}}
{{- $percent := ternary 80 75 $durable -}}
{{- $maxBytes := .Values.queue.maxBytes -}}
{{- $letters := 67108864 -}}
{{- if $maxBytes -}}
{{- $needed := include "relay.bytes" $maxBytes | int64 -}}
{{- $room := include "relay.bytes" ($size | default (ternary "10Gi" "3Gi" $durable)) | int64 -}}
{{- if gt (add $needed $letters) $room -}}
{{- if $size -}}
{{- fail (printf "queue.maxBytes (%s) and 64MiB of dead letters do not fit into %s (%s); leave one of the two values out, and it is made from the other" $maxBytes $key $size) -}}
{{- end -}}
{{- $size = printf "%dGi" (div (add (div (mul $needed 100) $percent) 1073741823) 1073741824) -}}
{{- end -}}
{{- else if $size -}}
{{- $maxBytes = printf "%dMiB" (div (div (mul (include "relay.bytes" $size | int64) $percent) 100) 1048576) -}}
{{- end -}}
{{- dict "size" $size "maxBytes" $maxBytes | toJson -}}
{{- end -}}

{{/*
Fails for values that contradict each other, and for a config that can not work in these pods: the
kubelet's probes reach the admin port by the pod's address, and a volume is of no use to a queue in
memory. A value that comes from a variable or a file of the pod is not known here.
*/}}
{{- define "relay.checks" -}}
{{- with .Values.config -}}
{{- $config := fromToml . -}}
{{- if hasKey $config "Error" -}}
{{- fail (printf "config is not TOML: %s" $config.Error) -}}
{{- end -}}
{{- $address := (get $config "admin" | default dict).address | default "127.0.0.1:9090" -}}
{{- if not (contains "${" $address) -}}
{{- if or (regexMatch "^(127\\.|localhost|\\[::1\\])" $address) (not (hasSuffix ":9090" $address)) -}}
{{- fail (printf "config: admin.address is %s, and the kubelet's probes need port 9090 on the pod's address; set address = \"0.0.0.0:9090\" in [admin]" $address) -}}
{{- end -}}
{{- end -}}
{{- $directory := (get $config "queue" | default dict).directory | default "" -}}
{{- if and $.Values.durable.enabled (not (contains "${" $directory)) (not (hasPrefix "/var/lib/kube-audit-forwarder" $directory)) -}}
{{- fail "durable.enabled is true, and the config's queue is not on the volume; set directory = \"/var/lib/kube-audit-forwarder\" in [queue]" -}}
{{- end -}}
{{- end -}}
{{- if le (int .Values.drain.terminationGracePeriodSeconds) (add .Values.drain.seconds 20 | int) -}}
{{- fail "drain.terminationGracePeriodSeconds must be longer than drain.seconds and shutdown.drain_timeout (20 s) together" -}}
{{- end -}}
{{- end -}}
