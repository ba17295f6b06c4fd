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
{{- end }}
