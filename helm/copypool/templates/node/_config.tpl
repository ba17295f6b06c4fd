{{/* (list $ GROUP-NAME GROUP POD): node.toml of one pod. Name, host and advertised address come from its environment. */}}
{{- define "copypool.nodeConfig" -}}
{{- $root := index . 0 -}}
{{- $group := index . 2 -}}
{{- $pod := index . 3 -}}
coordinators = [{{ include "copypool.coordinatorUrl" $root | toJson }}]
listen_host = {{ toJson $root.Values.listenHost }}
listen_port = {{ $root.Values.node.port }}
zone = {{ toJson $group.zone }}
state_dir = "/data/state"
join_token_file = "/etc/copypool/secrets/join-token"
{{- if eq $root.Values.tls.mode "none" }}
insecure_plaintext = true
{{- end }}
{{- $reserved := list "name" "coordinators" "listen_host" "listen_port" "advertise_url" "zone" "host" "state_dir" "volumes" "join_token_file" "tls" "insecure_plaintext" }}
{{- include "copypool.settings" (list $root "node" $root.Values.node.settings $reserved) | trim | nindent 0 }}
{{- if ne $root.Values.tls.mode "none" }}

[tls]
cert_file = "/etc/copypool/tls/tls.crt"
key_file = "/etc/copypool/tls/tls.key"
ca_file = "/etc/copypool/tls/ca.crt"
{{- end }}
{{- range $name, $volume := $group.volumes }}

[[volumes]]
name = {{ printf "%s-%s" $pod $name | toJson }}
path = {{ printf "/data/volumes/%s" $name | toJson }}
pool = {{ toJson $volume.pool }}
pool_type = {{ toJson $volume.poolType }}
{{- if not (kindIs "invalid" $volume.reserveBytes) }}
reserve_bytes = {{ toJson $volume.reserveBytes }}
{{- end }}
{{- end }}
{{- end }}

{{/* GROUP: the volume that also holds the node's identity. */}}
{{- define "copypool.firstVolume" -}}
{{ keys .volumes | sortAlpha | first }}
{{- end }}
