{{/* (list $ COMPONENT): the DNS names in a component's certificate, a YAML list. */}}
{{- define "copypool.certificateNames" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $host := include "copypool.host" . -}}
- localhost
- {{ $host }}
- {{ printf "%s-%s" (include "copypool.fullname" $root) $component }}
- {{ printf "%s-%s.%s" (include "copypool.fullname" $root) $component $root.Release.Namespace }}
- {{ printf "%s-%s.%s.svc" (include "copypool.fullname" $root) $component $root.Release.Namespace }}
- {{ printf "*.%s" $host | quote }}
{{- if ne $component "etcd" }}
- {{ include "copypool.serverName" $root }}
{{- end }}
{{- end }}

{{/*
The name that the certificates of coordinators and nodes hold in common. Servers check it instead of the host that they
call: a coordinator is called by the address of its pod, which no certificate can name beforehand.
*/}}
{{- define "copypool.serverName" -}}
{{ include "copypool.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{/* "true" where servers ask each other for certificates. */}}
{{- define "copypool.requireClientCert" -}}
{{- $given := .Values.tls.requireClientCert -}}
{{- if and (eq .Values.tls.mode "none") (eq (toString $given) "true") -}}
{{- fail "tls.requireClientCert needs certificates: set tls.mode to certManager or secrets" -}}
{{- end -}}
{{- if kindIs "invalid" $given }}{{ eq .Values.tls.mode "certManager" }}{{ else }}{{ $given }}{{ end -}}
{{- end }}
