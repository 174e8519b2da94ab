"use strict";

SwaggerUIBundle({
  url: "/schema/",
  dom_id: "#docs",
  deepLinking: true,
  // Nothing of this replica is sent to a validator on the web.
  validatorUrl: null,
});
