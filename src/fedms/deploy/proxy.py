"""What stands before Flower's SuperLink: nginx, which publishes what sites need and nothing else.

The SuperLink has one port for sites, for people and for the programs that it starts. It asks sites
for keys, but whoever else reaches the port can submit code that runs at every site. So it listens
on loopback, and of its port only `/v1/fleet/` is handed on.
"""

from __future__ import annotations

_TEXT = """\
# Written by fedms deploy; fedms server starts nginx with it, in this folder.
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {}
http {
  access_log off;
  server_tokens off;
  client_body_temp_path nginx/body;
  proxy_temp_path nginx/proxy;
  fastcgi_temp_path nginx/fastcgi;
  uwsgi_temp_path nginx/uwsgi;
  scgi_temp_path nginx/scgi;
  server {
    listen LISTEN ssl;
    ssl_certificate server.crt;
    ssl_certificate_key server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    client_max_body_size 64m;  # Flower sends arrays in parts of 5 MB
    client_body_timeout 300s;
    location /v1/fleet/ {
      proxy_pass https://127.0.0.1:INNER;
      proxy_http_version 1.1;
      proxy_ssl_trusted_certificate ca.crt;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_read_timeout 300s;
    }
    location / { return 404; }
  }
}
"""


def nginx(listen: str, inner_port: int) -> str:
    """A configuration of nginx: TLS where sites come in, the SuperLink behind it.

    Args:
        listen: address and port for sites.
        inner_port: of the SuperLink, on loopback.
    """
    return _TEXT.replace("LISTEN", listen).replace("INNER", str(inner_port))
