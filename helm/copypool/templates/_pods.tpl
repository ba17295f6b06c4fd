{{/*
What the pods of all components have in common.
*/}}

{{/* (list $ COMPONENT): security and scheduling of a pod. */}}
{{- define "copypool.pod" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
serviceAccountName: {{ include "copypool.fullname" $root }}-{{ $component }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{ include "copypool.podSecurity" $root | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
# Preferred, not required: a hard rule leaves pods of a small cluster pending. That a file and its copy are never on one
# host is what Copypool's own placement sees to, by the host that each node says it is on.
affinity:
{{- if $values.affinity }}
  {{- toYaml $values.affinity | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{ include "copypool.selector" . | nindent 14 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "copypool.selector" . | nindent 8 }}
      {{- with (index (append . "") 2) }}
        copypool.io/group: {{ . }}
      {{- end }}
{{- end }}

{{- define "copypool.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "copypool.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/*
(list $ COMPONENT MAP RESERVED): settings given in values, as TOML. One level of sections, written as dotted keys, so that
it may stand above any table. A key that the chart sets itself is refused: two definitions would be malformed TOML.
*/}}
{{- define "copypool.settings" -}}
{{- $component := index . 1 -}}
{{- $reserved := index . 3 -}}
{{- range $key, $value := index . 2 -}}
{{- if has $key $reserved }}{{ fail (printf "%s.settings.%s is set by the chart: use the value that stands for it" $component $key) }}{{ end -}}
{{- if kindIs "map" $value -}}
{{- range $inner, $item := $value }}
{{ $key }}.{{ $inner }} = {{ toJson $item }}
{{- end }}
{{- else }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* (list LABELS NAME SIZE CLASS): a claim that outlives the release. */}}
{{- define "copypool.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ index . 1 }}
  labels: {{ index . 0 | nindent 4 }}
  annotations:
    helm.sh/resource-policy: keep
spec: {{ include "copypool.claimSpec" (list (index . 2) (index . 3)) | nindent 2 }}
{{- end }}

{{- define "copypool.claimSpec" -}}
accessModes: [ReadWriteOnce]
{{- with index . 1 }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ index . 0 }}
{{- end }}

{{/*
(list $ STATEFULSET CLAIM SIZE): the size in a claim template. It can never change, so it stays what the StatefulSet that
is there says; the claims themselves, which the chart makes, are what grows.
*/}}
{{- define "copypool.templateSize" -}}
{{- $root := index . 0 -}}
{{- $claim := index . 2 -}}
{{- $size := index . 3 -}}
{{- $found := lookup "apps/v1" "StatefulSet" $root.Release.Namespace (index . 1) -}}
{{- range dig "spec" "volumeClaimTemplates" (list) $found -}}
{{- if eq .metadata.name $claim }}{{ $size = .spec.resources.requests.storage }}{{ end -}}
{{- end -}}
{{ $size }}
{{- end }}
