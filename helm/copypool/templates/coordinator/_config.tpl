{{/* coordinator.toml; name and advertised address come from the pod's environment. */}}
{{- define "copypool.coordinatorConfig" -}}
listen_host = {{ toJson .Values.listenHost }}
listen_port = 7600
master_secret_file = "/etc/copypool/secrets/master-secret"
admin_token_file = "/etc/copypool/secrets/admin-token"
join_token_file = "/etc/copypool/secrets/join-token"
{{- $peersCertified := include "copypool.requireClientCert" . }}
{{- if eq .Values.tls.mode "none" }}
insecure_plaintext = true
{{- end }}
{{- $reserved := list "name" "listen_host" "listen_port" "advertise_url" "master_secret_file" "admin_token_file" "join_token_file" "etcd" "tls" "insecure_plaintext" }}
{{- include "copypool.settings" (list . "coordinator" .Values.coordinator.settings $reserved) | trimSuffix "\n" }}

[etcd]
endpoints = {{ include "copypool.etcdEndpoints" . }}
{{- if .Values.etcd.enabled }}
quota_bytes = {{ int64 .Values.etcd.quotaBytes }}
{{- if ne .Values.tls.mode "none" }}
ca_file = "/etc/copypool/tls/ca.crt"
cert_file = "/etc/copypool/tls/tls.crt"
key_file = "/etc/copypool/tls/tls.key"
{{- end }}
{{- else }}
{{- with .Values.etcd.external }}
{{- if .tlsSecret }}
ca_file = "/etc/copypool/etcd-tls/ca.crt"
{{- if .clientCertificate }}
cert_file = "/etc/copypool/etcd-tls/tls.crt"
key_file = "/etc/copypool/etcd-tls/tls.key"
{{- end }}
{{- end }}
{{- if .passwordSecret }}
user = {{ required "etcd.external.passwordSecret needs etcd.external.user" .user | toJson }}
password_file = "/etc/copypool/etcd-password/password"
{{- end }}
{{- end }}
{{- end }}
{{- if ne .Values.tls.mode "none" }}

[tls]
cert_file = "/etc/copypool/tls/tls.crt"
key_file = "/etc/copypool/tls/tls.key"
ca_file = "/etc/copypool/tls/ca.crt"
server_name = {{ include "copypool.serverName" . | toJson }}
{{- if eq $peersCertified "true" }}
require_client_cert = true
{{- end }}
{{- end }}
{{- end }}
