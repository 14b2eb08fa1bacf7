"""The addresses of the page's views."""

import views
from django.urls import path

urlpatterns = [
    path("accept/<str:job_uuid>", views.accept_job),
    path("status/<str:job_uuid>", views.job_status),
    path("ready", views.ready),
]
