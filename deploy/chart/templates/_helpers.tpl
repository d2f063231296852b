{{/*
Each template reads a manifest of the directory manifests, changes what the values change, and
prints it. deploy/chart.sh makes that directory from deploy/base and deploy/overlays.
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

{{/* Fails for values that contradict each other, which the schema can not tell. */}}
{{- define "relay.checks" -}}
{{- if le (int .Values.drain.terminationGracePeriodSeconds) (add .Values.drain.seconds 20 | int) -}}
{{- fail "drain.terminationGracePeriodSeconds must be longer than drain.seconds and shutdown.drain_timeout (20 s) together" -}}
{{- end -}}
{{- end -}}
