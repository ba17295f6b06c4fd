{{/* (list $ GROUP): node.toml of a group. Name, volumes, host and advertised address come from each pod's environment. */}}
{{- define "copypool.nodeConfig" -}}
{{- $root := index . 0 -}}
{{- $group := index . 1 -}}
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
{{- include "copypool.settings" (list $root "node" $root.Values.node.settings $reserved) | trimSuffix "\n" }}
{{- if ne $root.Values.tls.mode "none" }}

[tls]
cert_file = "/etc/copypool/tls/tls.crt"
key_file = "/etc/copypool/tls/tls.key"
ca_file = "/etc/copypool/tls/ca.crt"
server_name = {{ include "copypool.serverName" $root | toJson }}
{{- if eq (include "copypool.requireClientCert" $root) "true" }}
require_client_cert = true
{{- end }}
{{- end }}
{{- end }}

{{/* GROUP: the volumes of a node, as a TOML value; they are named after their node. */}}
{{- define "copypool.nodeVolumes" -}}
{{- $volumes := list -}}
{{- range $name, $volume := .volumes -}}
{{- $entry := printf "name = \"$(POD_NAME)-%s\", path = \"/data/volumes/%s\", pool = %s, pool_type = %s" $name $name (toJson $volume.pool) (toJson $volume.poolType) -}}
{{- if not (kindIs "invalid" $volume.reserveBytes) }}{{ $entry = printf "%s, reserve_bytes = %d" $entry (int64 $volume.reserveBytes) }}{{ end -}}
{{- $volumes = append $volumes (printf "{%s}" $entry) -}}
{{- end -}}
[{{ join ", " $volumes }}]
{{- end }}

{{/* GROUP: the volume that also holds the node's identity. */}}
{{- define "copypool.firstVolume" -}}
{{ keys .volumes | sortAlpha | first }}
{{- end }}
