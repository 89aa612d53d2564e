# The official TensorFlow Serving image with Tandem's configuration, for plain Docker and for clusters without a
# ConfigMap. kubeflow/manifests/base runs the official image with the same flags. Its version is that of the TensorFlow
# that writes the SavedModels.
FROM tensorflow/serving:2.21.0
COPY kubeflow/manifests/serving/models.config kubeflow/manifests/serving/batching.config kubeflow/manifests/serving/monitoring.config \
     /etc/tensorflow-serving/
EXPOSE 8500 8501
USER 10001:10001
# The image has no curl, so bash opens the socket.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8501 && printf 'GET /v1/models/recommender HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q '\"AVAILABLE\"' <&3"]
# The image's entry point is a shell script that serves one model, MODEL_NAME.
ENTRYPOINT ["/usr/bin/tensorflow_model_server"]
CMD ["--port=8500", \
     "--rest_api_port=8501", \
     "--model_config_file=/etc/tensorflow-serving/models.config", \
     "--model_config_file_poll_wait_seconds=30", \
     "--allow_version_labels_for_unavailable_models=true", \
     "--file_system_poll_wait_seconds=10", \
     "--monitoring_config_file=/etc/tensorflow-serving/monitoring.config", \
     "--tensorflow_intra_op_parallelism=2", \
     "--tensorflow_inter_op_parallelism=2", \
     "--grpc_channel_arguments=grpc.max_connection_age_ms=300000,grpc.max_connection_age_grace_ms=30000"]
