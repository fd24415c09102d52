{{- define "throughway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "throughway.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "throughway.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "throughway.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "throughway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "throughway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "throughway.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "throughway.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "throughway.isDaemonSet" -}}
{{- if eq .Values.kind "DaemonSet" }}yes{{ end }}
{{- end }}

{{- define "throughway.lastPort" -}}
{{- if not (kindIs "invalid" .Values.relay.lastPort) }}
{{- int .Values.relay.lastPort }}
{{- else if include "throughway.isDaemonSet" . }}65535{{ else }}49251{{ end }}
{{- end }}

{{- define "throughway.isLowPort" -}}
{{- if or (lt (int .Values.turn.port) 1024) (and .Values.tls.secretName (lt (int .Values.tls.port) 1024)) }}yes{{ end }}
{{- end }}

{{/* The sockets of the running server: of this pod, or shared with the pod that takes over. */}}
{{- define "throughway.runDirectory" -}}/run/throughway{{- end }}

{{/* The addresses of a port for clients: of both families, or of IPv4 alone. */}}
{{- define "throughway.listen" -}}
0.0.0.0:{{ .port }}{{ if .ipv6 }},[::]:{{ .port }}{{ end }}
{{- end }}

{{/* The family of an address, 4 or 6; nothing if it is none. */}}
{{- define "throughway.family" -}}
{{- $octet := "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])" }}
{{- $groups := "([0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4})*)?" }}
{{- $count := len (regexFindAll "[0-9a-fA-F]+" . -1) }}
{{- if regexMatch (printf "^(%s[.]){3}%s$" $octet $octet) . }}4
{{- else if and (regexMatch (printf "^%s::%s$" $groups $groups) .) (lt $count 8) }}6
{{- else if and (regexMatch "^[0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4})+$" .) (eq $count 8) }}6
{{- end }}
{{- end }}

{{/* Ports that one network can't give to two listeners, and what is no address. */}}
{{- define "throughway.validateNetwork" -}}
{{- $first := int .Values.relay.firstPort }}
{{- $last := int (include "throughway.lastPort" .) }}
{{- $turn := int .Values.turn.port }}
{{- if and (ge $turn $first) (le $turn $last) }}
{{- fail (printf "turn.port: %d is one of the relayed ports, %d to %d; choose another one, or a range without it" $turn $first $last) }}
{{- end }}
{{- $taken := dict (toString $turn) "turn.port" }}
{{- $named := list (list "http.port" .Values.http.port) }}
{{- if .Values.tls.secretName }}{{ $named = prepend $named (list "tls.port" .Values.tls.port) }}{{ end }}
{{- if .Values.metrics.enabled }}{{ $named = append $named (list "metrics.port" .Values.metrics.port) }}{{ end }}
{{- range $named }}
{{- $port := toString (int (index . 1)) }}
{{- if hasKey $taken $port }}
{{- fail (printf "%s: %s is %s too; each needs a port of its own" (index . 0) $port (get $taken $port)) }}
{{- end }}
{{- $_ := set $taken $port (index . 0) }}
{{- end }}
{{- $families := dict }}
{{- range .Values.relay.external }}
{{- $family := include "throughway.family" . }}
{{- if or (not $family) (regexMatch "^(0[.]|[0:]+$)" .) }}
{{- fail (printf "relay.external: %s is no address that clients can reach" .) }}
{{- end }}
{{- if hasKey $families $family }}
{{- fail (printf "relay.external: %s and %s are both IPv%s; give one address of each family, or a table in config" (get $families $family) . $family) }}
{{- end }}
{{- $_ := set $families $family . }}
{{- end }}
{{- range .Values.metrics.allow }}
{{- $parts := splitList "/" . }}
{{- $family := include "throughway.family" (first $parts) }}
{{- $length := int (first (append (rest $parts) "0")) }}
{{- if or (not $family) (gt $length (ternary 32 128 (eq $family "4"))) }}
{{- fail (printf "metrics.allow: %s is no address and no prefix" .) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Values that are each right and do not fit together. */}}
{{- define "throughway.validate" -}}
{{- $first := int .Values.relay.firstPort }}
{{- $last := int (include "throughway.lastPort" .) }}
{{- if lt $last $first }}
{{- fail (printf "relay.lastPort: %d is before relay.firstPort, %d; give a range of ports" $last $first) }}
{{- end }}
{{- if include "throughway.isDaemonSet" . }}
{{- if and (include "throughway.isLowPort" .) (ne (int .Values.runAsUser) 0) }}
{{- fail (printf "runAsUser: %d can't bind a port below 1024 on the network of the node; set runAsUser to 0, or choose turn.port and tls.port from 1024 on" (int .Values.runAsUser)) }}
{{- end }}
{{- else }}
{{- if .Values.takeOver.enabled }}
{{- fail "takeOver.enabled: true needs kind: DaemonSet, because both servers must have the network of one node; set takeOver.enabled to false" }}
{{- end }}
{{- if gt (sub $last $first) 999 }}
{{- fail (printf "relay.lastPort: %d makes more than 1000 relayed ports, and a Deployment has to list each one; lower it, or use kind: DaemonSet" $last) }}
{{- end }}
{{- if eq .Values.deployment.exposure "loadBalancer" }}
{{- if ne (int .Values.deployment.replicas) 1 }}
{{- fail (printf "deployment.replicas: %d with exposure: loadBalancer; a relayed port belongs to one server, so set it to 1" (int .Values.deployment.replicas)) }}
{{- end }}
{{- if not .Values.relay.external }}
{{- fail "relay.external: is empty; exposure: loadBalancer needs the address of the balancer there, which clients are told" }}
{{- end }}
{{- end }}
{{- end }}
{{- include "throughway.validateNetwork" . }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) }}
{{- fail "metrics.serviceMonitor.enabled: true needs metrics.enabled: true" }}
{{- end }}
{{- end }}

{{/* What the chart decides of the configuration. Variables win over config.toml. */}}
{{- define "throughway.environment" -}}
{{- $port := int .Values.turn.port }}
{{- $run := include "throughway.runDirectory" . }}
- name: THROUGHWAY_LISTEN__UDP
  value: {{ include "throughway.listen" (dict "port" $port "ipv6" .Values.turn.ipv6) | quote }}
- name: THROUGHWAY_LISTEN__TCP
  value: {{ include "throughway.listen" (dict "port" $port "ipv6" .Values.turn.ipv6) | quote }}
{{- if .Values.tls.secretName }}
- name: THROUGHWAY_LISTEN__TLS
  value: {{ include "throughway.listen" (dict "port" (int .Values.tls.port) "ipv6" .Values.turn.ipv6) | quote }}
- name: THROUGHWAY_TLS__CERTIFICATE
  value: /etc/throughway/tls/tls.crt
- name: THROUGHWAY_TLS__PRIVATE_KEY
  value: /etc/throughway/tls/tls.key
{{- end }}
- name: THROUGHWAY_RELAY__PORTS
  value: "{{ int .Values.relay.firstPort }}-{{ include "throughway.lastPort" . }}"
{{- if .Values.relay.tcp }}
- name: THROUGHWAY_RELAY__TCP
  value: "true"
{{- end }}
{{- if and (include "throughway.isDaemonSet" .) (eq .Values.relay.address "node") }}
- name: THROUGHWAY_RELAY__ADDRESSES
  valueFrom:
    fieldRef:
      fieldPath: status.podIPs
{{- end }}
{{- if .Values.relay.external }}
- name: THROUGHWAY_RELAY__EXTERNAL
  value: {{ join "," .Values.relay.external | quote }}
{{- else if not (include "throughway.isDaemonSet" .) }}
- name: THROUGHWAY_RELAY__EXTERNAL
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}
- name: THROUGHWAY_AUTH__SECRET_FILE
  value: /etc/throughway/secret/secret
- name: THROUGHWAY_HTTP__LISTEN
  value: "127.0.0.1:{{ int .Values.http.port }}"
- name: THROUGHWAY_HTTP__ADMIN_SOCKET
  value: {{ $run }}/admin.sock
- name: THROUGHWAY_DRAIN__ON_TERM
  value: "true"
- name: THROUGHWAY_DRAIN__DEADLINE
  value: "{{ int .Values.drain.deadlineSeconds }}s"
{{- if .Values.takeOver.enabled }}
- name: THROUGHWAY_UPGRADE__SOCKET
  value: {{ $run }}/upgrade.sock
{{- end }}
- name: STATE_DIRECTORY
  value: /var/lib/throughway
{{- end }}

{{/* The ports of a Deployment: name, number, protocol. */}}
{{- define "throughway.ports" -}}
ports:
- {name: turn-udp, port: {{ int .Values.turn.port }}, protocol: UDP}
- {name: turn-tcp, port: {{ int .Values.turn.port }}, protocol: TCP}
{{- if .Values.tls.secretName }}
- {name: turn-tls, port: {{ int .Values.tls.port }}, protocol: TCP}
{{- end }}
{{- range untilStep (int .Values.relay.firstPort) (int (add1 (int (include "throughway.lastPort" .)))) 1 }}
- {name: relay-{{ . }}, port: {{ . }}, protocol: UDP}
{{- if $.Values.relay.tcp }}
- {name: relay-tcp-{{ . }}, port: {{ . }}, protocol: TCP}
{{- end }}
{{- end }}
{{- end }}

{{- define "throughway.pod" -}}
metadata:
  labels:
    {{- include "throughway.selectorLabels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- /* A changed configuration makes new pods. */}}
    checksum/config: {{ include (print $.Template.BasePath "/configmap.yaml") . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  serviceAccountName: {{ include "throughway.fullname" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- if include "throughway.isDaemonSet" . }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  terminationGracePeriodSeconds: {{ add (int .Values.drain.deadlineSeconds) 30 }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsUser: {{ int .Values.runAsUser }}
    runAsGroup: 65532
    fsGroup: 65532
    runAsNonRoot: {{ ne (int .Values.runAsUser) 0 }}
    seccompProfile:
      type: RuntimeDefault
  {{- if and .Values.takeOver.enabled .Values.takeOver.prepareImage }}
  initContainers:
    - name: prepare
      image: {{ .Values.takeOver.prepareImage }}
      command: ["sh", "-ec", "chown {{ int .Values.runAsUser }}:65532 {{ include "throughway.runDirectory" . }} && chmod 0750 {{ include "throughway.runDirectory" . }}"]
      securityContext:
        runAsUser: 0
        runAsNonRoot: false
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
          add: [CHOWN, FOWNER]
      volumeMounts:
        - name: run
          mountPath: {{ include "throughway.runDirectory" . }}
  {{- end }}
  containers:
    - name: throughway
      image: "{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}"
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: ["/throughway"]
      args:
        - serve
        - --config
        - /etc/throughway/config.toml
        {{- if .Values.takeOver.enabled }}
        - --take-over
        - {{ include "throughway.runDirectory" . }}/upgrade.sock
        - --or-start
        {{- end }}
      env:
        {{- include "throughway.environment" . | nindent 8 }}
      {{- if not (include "throughway.isDaemonSet" .) }}
      ports:
        {{- $isHostPort := eq .Values.deployment.exposure "hostPort" }}
        {{- range (include "throughway.ports" . | fromYaml).ports }}
        - name: {{ .name }}
          containerPort: {{ int .port }}
          {{- if $isHostPort }}
          hostPort: {{ int .port }}
          {{- end }}
          protocol: {{ .protocol }}
        {{- end }}
      {{- end }}
      {{- if not .Values.takeOver.enabled }}
      lifecycle:
        preStop:
          exec:
            {{- /* Calls go on; it comes back when the last one has ended. */}}
            command: ["/throughway", "drain", "--wait"]
      {{- end }}
      startupProbe:
        exec:
          command: ["/throughway", "health"]
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 60
      livenessProbe:
        exec:
          command: ["/throughway", "health"]
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        exec:
          command: ["/throughway", "health", "--ready"]
        periodSeconds: 5
        timeoutSeconds: 5
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
          {{- if include "throughway.isLowPort" . }}
          add: [NET_BIND_SERVICE]
          {{- end }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: config
          mountPath: /etc/throughway/config.toml
          subPath: config.toml
          readOnly: true
        - name: secret
          mountPath: /etc/throughway/secret
          readOnly: true
        {{- if .Values.tls.secretName }}
        - name: tls
          mountPath: /etc/throughway/tls
          readOnly: true
        {{- end }}
        - name: run
          mountPath: {{ include "throughway.runDirectory" . }}
        - name: state
          mountPath: /var/lib/throughway
    {{- if .Values.metrics.enabled }}
    - name: metrics
      image: {{ .Values.metrics.image }}
      command: ["nginx", "-e", "stderr", "-c", "/etc/throughway-metrics/nginx.conf", "-g", "daemon off;"]
      {{- if not (include "throughway.isDaemonSet" .) }}
      ports:
        - name: metrics
          containerPort: {{ int .Values.metrics.port }}
          protocol: TCP
      {{- end }}
      {{- /* Another user than the server: it reads metrics and operates nothing. */}}
      securityContext:
        runAsUser: 65533
        runAsNonRoot: true
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      {{- with .Values.metrics.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: metrics
          mountPath: /etc/throughway-metrics
          readOnly: true
        - name: metrics-temporary
          mountPath: /tmp
    {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "throughway.fullname" . }}
        items:
          - {key: config.toml, path: config.toml}
    - name: secret
      secret:
        secretName: {{ .Values.secret.name }}
        defaultMode: 0440
        items:
          - {key: {{ .Values.secret.key | quote }}, path: secret}
    {{- if .Values.tls.secretName }}
    - name: tls
      secret:
        secretName: {{ .Values.tls.secretName }}
        defaultMode: 0440
    {{- end }}
    - name: run
      {{- if .Values.takeOver.enabled }}
      hostPath:
        path: {{ .Values.takeOver.directory }}
        type: DirectoryOrCreate
      {{- else }}
      emptyDir: {}
      {{- end }}
    - name: state
      emptyDir:
        sizeLimit: {{ .Values.state.sizeLimit }}
    {{- if .Values.metrics.enabled }}
    - name: metrics
      configMap:
        name: {{ include "throughway.fullname" . }}
        items:
          - {key: nginx.conf, path: nginx.conf}
    - name: metrics-temporary
      emptyDir:
        sizeLimit: 16Mi
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
