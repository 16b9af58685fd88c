{{- define "pullthrough.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: pods and Services have this name with something behind it. */}}
{{- define "pullthrough.fullname" -}}
{{- $name := include "pullthrough.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pullthrough.selectorLabels" -}}
app.kubernetes.io/name: {{ include "pullthrough.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pullthrough.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "pullthrough.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "pullthrough.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pullthrough.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "pullthrough.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The port of an address such as 0.0.0.0:5000 or [::]:5000. */}}
{{- define "pullthrough.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{/* Do replicas share metadata, and so speak to each other? Empty where not. */}}
{{- define "pullthrough.shares" -}}
{{- if or .Values.secrets.metadata.name .Values.config.shared.metadata -}}yes{{- end -}}
{{- end -}}

{{/* The listeners as ports, with a key that the ports of a Service or a container have: the first is called client. */}}
{{- define "pullthrough.clientPorts" -}}
{{- range $number, $listen := .Values.config.listen }}
- name: {{ gt $number 0 | ternary (printf "client-%s" (include "pullthrough.port" $listen.address)) "client" }}
  port: {{ include "pullthrough.port" $listen.address }}
{{- end }}
{{- end -}}

{{/* Whole seconds out of 60s, 1.5m or 1h, as proxy.yaml has them; rounded up. */}}
{{- define "pullthrough.seconds" -}}
{{- $text := toString . | trim -}}
{{- $factor := get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 "" 1.0) (regexFind "[a-z]*$" $text) -}}
{{- mulf (float64 (regexFind "^[0-9.]+" $text)) $factor | ceil | int64 -}}
{{- end -}}

{{- define "pullthrough.gracePeriod" -}}
{{- $least := add (include "pullthrough.seconds" .Values.config.shutdown_timeout | int64) (.Values.preStopSeconds | int64) -}}
{{- $given := .Values.terminationGracePeriodSeconds -}}
{{- if and $given (le (int64 $given) $least) -}}
{{- fail (printf "terminationGracePeriodSeconds has to be more than config.shutdown_timeout and preStopSeconds: %d" $least) -}}
{{- end -}}
{{- $given | default (add $least 10) | int64 -}}
{{- end -}}
