"""Routes of the example."""

from django.urls import path

from shop import views

urlpatterns = [
    path("", views.cart),
    path("add/<str:item>/", views.add),
    path("price/<str:item>/", views.price),
]
