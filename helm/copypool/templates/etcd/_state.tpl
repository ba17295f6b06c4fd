{{/* Memory request of a member: about 0.8 GiB per million files, beside what an empty one takes. */}}
{{- define "copypool.etcdMemory" -}}
{{ add 512 (round (mulf 820 .Values.etcd.plannedMillionFiles) 0 | int) }}Mi
{{- end }}

{{/*
`new` at the install, `existing` from the first upgrade on that finds most members ready, or is told so. A member that has lost its disk and is told `new` could
begin a history of its own with another one in the same state; told `existing`, it waits until it is a member again.
*/}}
{{- define "copypool.etcdClusterState" -}}
{{- $name := printf "%s-etcd" (include "copypool.fullname" .) -}}
{{- $noted := dig "data" "initial-cluster-state" "new" (lookup "v1" "ConfigMap" .Release.Namespace $name) -}}
{{- $ready := dig "status" "readyReplicas" 0 (lookup "apps/v1" "StatefulSet" .Release.Namespace $name) -}}
{{- if .Values.etcd.initialClusterState -}}
{{ .Values.etcd.initialClusterState }}
{{- else if or (eq $noted "existing") (gt (mul 2 (int $ready)) (int .Values.etcd.replicas)) -}}
existing
{{- else -}}
new
{{- end -}}
{{- end }}
