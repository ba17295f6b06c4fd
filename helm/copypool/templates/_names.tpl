{{/*
Names, labels and addresses. What is used in a selector, a claim template or a Service name never changes between
releases: Kubernetes refuses such an update.
*/}}

{{- define "copypool.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 30 | trimSuffix "-" -}}
{{- end }}

{{/* 30 characters leave room for "-GROUP-ORDINAL" and for the hashes that controllers append. */}}
{{- define "copypool.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 30 | trimSuffix "-" -}}
{{- else if contains (include "copypool.name" .) .Release.Name -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "copypool.name" .) | trunc 30 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* (list $ COMPONENT): what selects the pods of one component. */}}
{{- define "copypool.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "copypool.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* (list $ COMPONENT): labels of an object. Those of a pod are without versions, so that a new chart alone restarts nothing. */}}
{{- define "copypool.labels" -}}
{{- $root := index . 0 -}}
{{ include "copypool.selector" . }}
app.kubernetes.io/part-of: copypool
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (list $ COMPONENT): labels of a pod. */}}
{{- define "copypool.podLabels" -}}
{{ include "copypool.selector" . }}
app.kubernetes.io/part-of: copypool
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "copypool.scheme" -}}
{{- if eq .Values.tls.mode "none" }}http{{ else }}https{{ end -}}
{{- end }}

{{/* (list $ SERVICE): the DNS name of a Service. */}}
{{- define "copypool.host" -}}
{{- $root := index . 0 -}}
{{ include "copypool.fullname" $root }}-{{ index . 1 }}.{{ $root.Release.Namespace }}.svc.{{ $root.Values.clusterDomain }}
{{- end }}

{{- define "copypool.coordinatorUrl" -}}
{{ include "copypool.scheme" . }}://{{ include "copypool.host" (list . "coordinator") }}:{{ .Values.coordinator.service.port }}
{{- end }}

{{/* The listen address as it stands in a URL. */}}
{{- define "copypool.listenUrlHost" -}}
{{- if contains ":" .Values.listenHost }}[{{ .Values.listenHost }}]{{ else }}{{ .Values.listenHost }}{{ end -}}
{{- end }}

{{- define "copypool.keysSecret" -}}
{{ .Values.secrets.keys | default (printf "%s-keys" (include "copypool.fullname" .)) }}
{{- end }}

{{- define "copypool.joinSecret" -}}
{{ .Values.secrets.join | default (printf "%s-join" (include "copypool.fullname" .)) }}
{{- end }}

{{/* (list $ COMPONENT): the Secret with a component's certificate. */}}
{{- define "copypool.tlsSecret" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.tls.mode "secrets" -}}
{{ required (printf "tls.mode is \"secrets\": name the Secret with the certificate in tls.secrets.%s" (index . 1)) (index $root.Values.tls.secrets (index . 1)) }}
{{- else -}}
{{ include "copypool.fullname" $root }}-{{ index . 1 }}-tls
{{- end -}}
{{- end }}

{{/* (list $ COMPONENT): the image of a component. */}}
{{- define "copypool.image" -}}
{{- $root := index . 0 -}}
{{- $image := (index $root.Values (index . 1)).image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The endpoints of etcd, a JSON list of host:port. */}}
{{- define "copypool.etcdEndpoints" -}}
{{- if .Values.etcd.enabled -}}
{{- $endpoints := list -}}
{{- range $i := until (int .Values.etcd.replicas) -}}
{{- $endpoints = append $endpoints (printf "%s-etcd-%d.%s:2379" (include "copypool.fullname" $) $i (include "copypool.host" (list $ "etcd"))) -}}
{{- end -}}
{{ toJson $endpoints }}
{{- else -}}
{{- if not .Values.etcd.external.endpoints }}{{ fail "etcd.enabled is false: name the members in etcd.external.endpoints, as host:port" }}{{ end -}}
{{ toJson .Values.etcd.external.endpoints }}
{{- end -}}
{{- end }}
